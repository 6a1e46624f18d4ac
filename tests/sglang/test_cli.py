"""The ``lynx-sglang`` cli."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lynx_controller import Batch, Observation, Slo
from lynx_controller.log.decision_log import Log, LoggedController
from lynx_sglang import cli
from lynx_sglang.settings import OPTIONS, flag_of

PART = {
    "settings": {
        "policy": "lynx",
        "slo_itl_ms": 20.0,
        "slo_percentile": 95.0,
        "slo_tpot_ms": None,
        "slo_ttft_ms": None,
    },
    "decision": {
        "demand": 1.0,
        "share": 0.625,
        "budget": [12, 14],
        "reason": "hold",
        "saturated": True,
        "predicted_ms": 18.21,
    },
    "num_layers": 2,
    "num_experts": 64,
    "decode_steps": 10,
    "active_experts_sum": 121.0,
    "retained_mass_sum": 9.5,
    "decisions": {"hold": 10},
    "shadow": {"rows": 0},
}


def test_check_passes_on_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    assert "supported" in capsys.readouterr().out


def test_settings_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings"]) == 0
    text = capsys.readouterr().out
    assert all(flag_of(name) in text for name in OPTIONS)


def test_status_describes_the_loop() -> None:
    text = cli.describe(PART)
    assert "SLO p95 ITL 20 ms\n" in text
    assert "cap 13.0 of 64 experts, share 0.625, demand 1.000, hold, saturated" in text
    assert "12.1 active experts, 0.9500 retained mass" in text
    assert "shadow" not in text


def test_status_tells_what_shadow_passes_saw() -> None:
    seen = {"rows": 32, "steps": 2, "kl_mean": 0.00123, "kl_p99": 0.025, "agreement": 0.96875}
    text = cli.describe({**PART, "shadow": seen})
    assert (
        "shadow passes: 2 steps, KL 1.23e-03 nats a token (p99 0.025), top-1 agreement 0.9688"
        in text
    )


def test_status_before_the_first_step() -> None:
    assert cli.describe({**PART, "decision": None}).endswith("no step has run yet")


def test_status_says_when_there_is_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--url", "http://127.0.0.1:9"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


@pytest.fixture
def web(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str]]]:
    """An address that answers everything with the test's status and body, and the keys it saw."""
    status, body = request.param
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}", keys
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "web",
    [
        *(
            (200, body)
            for body in (b"", b"{}", b"[]", b"[1]", b"null", b"<html>", b"\xff\x00", b"3")
        ),
        *(
            (200, b'{"internal_states": %s}' % body)
            for body in (b"3", b"[3]", b"null", b"[]", b"{}")
        ),
        (200, b'{"internal_states": [{}]}'),
        (200, b'{"internal_states": [{"lynx": 3}]}'),
        (200, b"[" * 100_000),
        *((status, b"") for status in (401, 403, 404, 500, 204)),
    ],
    indirect=True,
    ids=repr,
)
def test_status_names_what_is_no_server(
    web: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "--url", web[0]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lynx-sglang: http://127.0.0.1:")
    assert len(line) < 400


@pytest.mark.parametrize(
    "url", ["", "http://", "ftp://host", "http://host:port", "http://h o:1", "http://[", "//x"]
)
def test_status_names_an_address_that_is_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", f"--url={url}"]) == 1
    assert "--url: expected http://HOST:PORT, got" in capsys.readouterr().err


@pytest.mark.parametrize(
    "web", [(200, json.dumps({"internal_states": [{"lynx": PART}]}).encode())], indirect=True
)
def test_status_sends_the_key(
    web: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, keys = web
    assert cli.main(["status", "--url", url]) == 0
    assert cli.main(["status", "--url", url, "--api-key", "one"]) == 0
    monkeypatch.setenv("SGLANG_API_KEY", "two")
    assert cli.main(["status", "--url", url]) == 0
    assert keys == ["", "Bearer one", "Bearer two"]
    assert "cap 13.0" in capsys.readouterr().out


def test_replay_explains_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "decisions.jsonl"
    log = Log(path)
    controller = LoggedController(log, Slo(itl_ms=10.0), num_layers=2, num_experts=8, top_k=2)
    for step in range(5):
        controller.step(
            Observation(
                step=step, batch=Batch.of(4), step_ms=9.0,
                active_experts=[6, 7], retained_mass=[1.0, 1.0], kv_tokens=100,
            )
        )  # fmt: skip
    log.close()
    assert cli.main(["replay", str(path)]) == 0
    assert "5 calls replayed, 0 decided differently" in capsys.readouterr().out
    assert cli.main(["replay", str(path), "--step", "3"]) == 0
    assert cli.main(["replay", str(path), "--step", "99999999"]) == 1
    assert "the log has no step 99999999" in capsys.readouterr().err
    assert cli.main(["replay", str(tmp_path / "absent")]) == 1
    path.write_text("{}\n")
    assert cli.main(["replay", str(path)]) == 1
    assert "not a decision log" in capsys.readouterr().err
