"""Operators' tools to watch a server, on a real one under a small load."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml

from loadtests.server import Server, free_port
from lynx_sglang import cli
from lynx_sglang.connection import Connection
from scripts.dashboard import PANELS
from tests.e2e.forkserver import ForkedServer, ForkServer

pytestmark = pytest.mark.e2e

Generate = Callable[..., list[Any]]
RULES = Path(__file__).resolve().parents[2] / "examples/monitoring/lynx-rules.yaml"
OPTIONS = (
    "--sleep-on-idle", "--moe-backend=lynx", "--lynx-slo-itl-ms=0.01", "--lynx-shadow-share=0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(
    forks: ForkServer, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Its SLO cannot be met: it is saturated whenever it runs."""
    log = tmp_path_factory.mktemp("operate") / "log"
    with ForkedServer(forks, model, log, OPTIONS) as made:
        yield made


@contextmanager
def load(server: Server, prompts: list[str], generate: Generate) -> Iterator[None]:
    """Keeps four requests running."""
    ended = Event()

    def ask() -> None:
        while not ended.is_set():
            tiers = ["flexible", "flexible", "flexible", "exact"]
            generate(server, prompts[:4], tiers, ignore_eos=True, max_new_tokens=60)

    thread = Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def watched(server: Server, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["watch", "--once", "--url", server.url]) == 0
    return capsys.readouterr().out


def test_watch_tells_a_load_and_its_end(
    server: Server, prompts: list[str], generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    with load(server, prompts, generate):
        time.sleep(2.0)  # the controller learns what cuts cost
        busy = watched(server, capsys)
    assert "cannot hold SLO p95 ITL 0.01 ms at this quality floor" in busy
    assert "% retained, limit 0.75" in busy
    assert len(busy.splitlines()) == 8
    idle = watched(server, capsys)
    assert "0 running, 0 waiting" in idle
    assert "idle: nothing runs or waits" in idle
    part = Connection(server.url).lynx_parts()[0]
    assert f"over {part['shadow']['rows']} tokens" in idle
    assert part["shadow"]["rows"] > 0


def shown(server: Server, name: str, own: str = "") -> float:
    """One sample of ``/metrics``."""
    start = f"sglang:lynx_{name}{{"
    lines = [line for line in server.get("/metrics").splitlines() if line.startswith(start)]
    (line,) = [line for line in lines if own in line]
    return float(line.split()[-1])


def test_metrics_of_an_idle_server_are_true(
    server: Server, prompts: list[str], generate: Generate
) -> None:
    def counted(tier: str) -> list[float]:
        names = ("requests_total", "decode_tokens_total", "degraded_tokens_total")
        return [shown(server, name, f'tier="{tier}"') for name in names]

    generate(server, prompts[:4], ignore_eos=True, max_new_tokens=60)  # learns what cuts cost
    before = {tier: counted(tier) for tier in ("exact", "flexible")}
    tiers = ["exact", "flexible"] * 4
    generate(server, prompts[:8], tiers, ignore_eos=True, max_new_tokens=60)
    state = Connection(server.url).lynx_parts()[0]
    assert (state["is_idle"], state["running"], state["waiting"]) == (True, 0, 0)
    assert state["decision"]["saturated"]
    told = {
        tier: [after - start for after, start in zip(counted(tier), before[tier], strict=True)]
        for tier in before
    }
    assert told["exact"] == [4, 4 * 59, 0]  # the prefill gives the first token
    assert told["flexible"][:2] == [4, 4 * 59]
    assert 0 < told["flexible"][2] <= 4 * 59
    expected = {"saturated": 0.0, "active_experts": 0.0, "retained_mass": 1.0, "share": 1.0}
    assert {name: shown(server, name) for name in expected} == expected
    for slo_ms in (20.0, 0.01):  # nothing runs, and the metric follows
        body = {"server_args": {"lynx_slo_itl_ms": slo_ms}}
        assert server.post("/set_internal_state", body) == [True]
        assert shown(server, "slo_itl_seconds") == pytest.approx(slo_ms / 1e3)


def test_watch_tells_plain_sglang(plain: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", "--once", "--url", plain.url]) == 1
    assert "runs without --moe-backend lynx" in capsys.readouterr().err


class Prometheus:
    """A Prometheus that scrapes one server twice a second."""

    def __init__(self, folder: Path, target: str) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus is not installed (Debian package: prometheus)")
        scrape = {"job_name": "sglang", "static_configs": [{"targets": [target]}]}
        configuration = folder / "prometheus.yaml"
        configuration.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
                    "rule_files": [str(RULES)],
                    "scrape_configs": [scrape],
                }
            )
        )
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log"
        command = [
            program,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10.0)

    def get(self, path: str, **query: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def values(self, expression: str) -> list[float]:
        found = self.get("query", query=expression)["result"]
        return [float(each["value"][1]) for each in found]

    def wait_for(self, expression: str, timeout_s: float = 20.0) -> None:
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            try:
                if self.values(expression):
                    return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        raise AssertionError(f"no data: {expression}")


def test_every_panel_and_rule_has_data_of_a_real_server(
    server: Server, prompts: list[str], generate: Generate, tmp_path: Path
) -> None:
    with Prometheus(tmp_path, server.url.removeprefix("http://")) as prometheus:
        saturated = '{__name__=~"sglang[:_]lynx_saturated"}'
        with load(server, prompts, generate):
            prometheus.wait_for(f"{saturated} == 1")
            time.sleep(3.0)
            empty = []
            for panel in PANELS:
                for legend, expression in panel.queries.items():
                    asked = expression.replace("$__rate_interval", "10s").replace("$job", ".*")
                    asked = asked.replace("$instance", ".*")
                    if not prometheus.values(asked):
                        empty.append((panel.title, legend))
        # It has no quality limit.
        assert empty == [("KL to the full model", "limit {{instance}}")]
        prometheus.wait_for(f"{saturated} == 0")
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        assert prometheus.values("instance:lynx_degraded_tokens:ratio_rate5m")[0] > 0.0


def test_set_changes_a_server_and_says_what_it_refuses(
    server: Server, plain: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    to_server = ["set", "--url", server.url]
    assert cli.main([*to_server, "slo-itl-ms=25", "max-quality-loss=0.01"]) == 0
    assert "slo-itl-ms 0.01 -> 25, max-quality-loss none -> 0.01" in capsys.readouterr().out
    assert cli.main([*to_server, "budget=25%"]) == 0
    assert "budget auto -> 25%" in capsys.readouterr().out
    assert cli.main([*to_server, "budget=auto", "demand=0.5"]) == 0
    assert "budget 25% -> auto, demand auto -> 0.5" in capsys.readouterr().out
    assert cli.main([*to_server, "demand=auto"]) == 0
    capsys.readouterr()
    assert cli.main([*to_server, "shadow-share=0", "floor=2"]) == 1
    assert "shadow" in capsys.readouterr().err
    assert cli.main([*to_server, "--url", plain.url, "floor=2"]) == 1
    assert f"{plain.url} runs without --moe-backend lynx" in capsys.readouterr().err
    part = server.lynx()
    assert part is not None
    assert (part["settings"]["slo_itl_ms"], part["settings"]["floor"]) == (25.0, 1)
    assert cli.main([*to_server, "slo-itl-ms=0.01", "max-quality-loss=none"]) == 0


def test_watch_tells_a_stopped_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Last of this module: it stops the module's server."""
    server.stop()
    assert cli.main(["watch", "--once", "--url", server.url]) == 1
    assert server.url in capsys.readouterr().err
