"""``lynx-sglang set``: replicas change together or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from lynx_sglang import cli, steer
from lynx_sglang.errors import SettingError

KEY, ADMIN_KEY = "Bearer k", "Bearer a"


class Replica(HTTPServer):
    """A server that keeps settings, or refuses every change after the first ``takes``."""

    def __init__(self, takes: int, **settings: Any) -> None:
        self.takes, self.settings, self.keys = takes, settings, set[tuple[str, str]]()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Replica

    def do_GET(self) -> None:
        self.answer(200, {"internal_states": [{"lynx": {"settings": self.server.settings}}]})

    def do_POST(self) -> None:
        entries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["server_args"]
        if not self.server.takes:
            self.answer(400, {"object": "error", "message": "lynx_budget: too small"})
            return
        self.server.takes -= 1
        self.server.settings |= {key.removeprefix("lynx_"): n for key, n in entries.items()}
        self.answer(200, [True])

    def answer(self, status: int, body: Any) -> None:
        self.server.keys.add((self.command, self.headers.get("Authorization", "")))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def running(replica: Replica) -> Iterator[Replica]:
    with replica:
        thread = threading.Thread(target=replica.serve_forever, args=(0.05,))
        thread.start()
        yield replica
        replica.shutdown()
        thread.join()


@pytest.fixture
def replicas() -> Iterator[Callable[..., list[Replica]]]:
    with ExitStack() as stack:
        yield lambda *takes: [
            stack.enter_context(running(Replica(each, slo_itl_ms=20.0, floor=1))) for each in takes
        ]


def run_set(servers: list[Replica], *entries: str) -> int:
    urls = [word for each in servers for word in ("--url", each.url)]
    return cli.main(["set", *urls, "--api-key", "k", "--admin-api-key", "a", *entries])


def test_all_replicas_change(
    replicas: Callable[..., list[Replica]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = replicas(1, 1)
    assert run_set([one, two], "slo-itl-ms=25", "floor=2") == 0
    assert one.settings == two.settings == {"slo_itl_ms": 25.0, "floor": 2.0}
    assert f"{one.url}: slo-itl-ms 20 -> 25, floor 1 -> 2" in capsys.readouterr().out
    assert one.keys == {("GET", KEY), ("POST", ADMIN_KEY)}


def test_what_one_replica_refuses_none_keeps(
    replicas: Callable[..., list[Replica]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = replicas(2, 0)
    assert run_set([one, two], "slo-itl-ms=25") == 1
    assert one.settings["slo_itl_ms"] == two.settings["slo_itl_ms"] == 20.0
    assert f"{two.url}: lynx_budget: too small; no server is changed" in capsys.readouterr().err


def test_a_replica_that_cannot_be_put_back_is_named(
    replicas: Callable[..., list[Replica]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = replicas(1, 0)
    assert run_set([one, two], "slo-itl-ms=25") == 1
    assert f"NOT put back: {one.url}" in capsys.readouterr().err


def test_nothing_is_sent_where_a_server_is_missing(
    replicas: Callable[..., list[Replica]], capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = replicas(1)
    urls = ["--url", one.url, "--url", "http://127.0.0.1:9"]
    assert cli.main(["set", *urls, "slo-itl-ms=25"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
    assert one.settings["slo_itl_ms"] == 20.0


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (["slo-itl-ms"], "expected NAME=VALUE"),
        (["slo-itl-ms=fast"], "lynx_slo_itl_ms"),
        (["slo_itl_ms=-3"], "lynx_slo_itl_ms"),
        (["policy=oea"], "cannot change at run time"),
        (["floor=1", "floor=2"], "given twice"),
        (["=3"], "cannot change at run time"),
    ],
)
def test_wrong_entries_are_named(entries: list[str], reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        steer.parsed(entries)


def test_entries_are_spelled_as_flags_are() -> None:
    assert steer.parsed(["--lynx-slo-itl-ms=25", "budget=25%", "demand=auto"]) == {
        "slo_itl_ms": 25.0,
        "budget": "25%",
        "demand": "auto",
    }
