"""Two replicas in one server (--dp-size 2): each has a controller of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.server import Server
from lynx_sglang import cli
from lynx_sglang.connection import Connection
from tests.e2e.forkserver import ForkedServer, ForkServer

pytestmark = pytest.mark.e2e

Generate = Callable[..., list[Any]]
FIXED = {"ignore_eos": True, "max_new_tokens": 24}
EXPERTS, LAYERS = 64, 8


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas") / "log"


@pytest.fixture(scope="module")
def replicas(forks: ForkServer, model: Path, log: Path) -> Iterator[Server]:
    options = ["--dp-size=2", "--sleep-on-idle", "--moe-backend=lynx", "--lynx-budget=full"]
    options += [f"--lynx-decision-log={log.with_name('decisions.jsonl')}", "--enable-metrics"]
    with ForkedServer(forks, model, log, options) as server:
        yield server


def parts(server: Server) -> list[dict[str, Any]]:
    return Connection(server.url).lynx_parts()


def test_full_budget_answers_as_plain_sglang_does(
    replicas: Server, plain: Server, generate: Generate, prompts: list[str]
) -> None:
    asked = prompts[:24]
    ours = generate(replicas, asked, **FIXED)
    theirs = generate(plain, asked, **FIXED)
    assert [each.tokens for each in ours] == [each.tokens for each in theirs]
    assert [part["ranks"]["replica"] for part in parts(replicas)] == [0, 1]
    assert all(part["decode_steps"] > 0 for part in parts(replicas))


def test_a_change_reaches_both_and_a_cap_holds_on_both(
    replicas: Server,
    plain: Server,
    generate: Generate,
    prompts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["set", "--url", replicas.url, "budget=25%"]) == 0
    assert "budget full -> 25%" in capsys.readouterr().out
    before = parts(replicas)
    generate(replicas, prompts[:12], **FIXED)  # the floors of twelve rows are within the cap
    for old, new in zip(before, parts(replicas), strict=True):
        steps = new["decode_steps"] - old["decode_steps"]
        assert steps > 0
        assert new["decision"]["budget"] == [EXPERTS // 4] * LAYERS
        assert new["active_experts_sum"] - old["active_experts_sum"] <= EXPERTS // 4 * steps
        assert new["retained_mass_sum"] - old["retained_mass_sum"] < steps
        assert new["floor_hits"] == old["floor_hits"]
    tiers = ["exact" if place % 8 == 0 else "flexible" for place in range(24)]
    answers = generate(replicas, prompts[:24], tiers, **FIXED)
    alone = generate(plain, prompts[:24:8], **FIXED)
    assert [each.tokens for each in answers[::8]] == [each.tokens for each in alone]
    assert not any(each.report["degraded"] for each in answers[::8])
    assert cli.main(["status", "--url", replicas.url]) == 0
    shown = capsys.readouterr().out
    assert "replica 0\n" in shown
    assert "replica 1\n" in shown


def test_each_replica_has_its_own_log_and_metrics(replicas: Server, log: Path) -> None:
    for replica in (0, 1):
        file = log.with_name(f"decisions.dp{replica}.jsonl")
        assert all(json.loads(line) for line in file.read_text().splitlines())
        assert cli.main(["replay", str(file)]) == 0
    assert not log.with_name("decisions.jsonl").exists()
    lines = replicas.get("/metrics").splitlines()
    counts = [line for line in lines if line.startswith("sglang:lynx_active_experts{")]
    assert len({line.split("}")[0] for line in counts}) == 2


def test_nothing_is_left_behind(forks: ForkServer, model: Path, tmp_path: Path) -> None:
    options = ["--dp-size=2", "--sleep-on-idle", "--moe-backend=lynx"]
    with ForkedServer(forks, model, tmp_path / "log", options) as server:
        children = psutil.Process(server._process.pid).children(recursive=True)
        assert len(children) >= 3  # two schedulers among them
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
