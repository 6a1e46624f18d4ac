"""A replica of two ranks on CPU and gloo: how each routed its rows, step by step.

Each rank has a half of every expert, or half of the experts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtests.server import Server
from tests.e2e.forkserver import ForkedServer, ForkServer

pytestmark = pytest.mark.e2e

Generate = Callable[..., list[Any]]
LAYERS = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's step, as ``rank_probe`` wrote it."""

    number: int
    phase: str
    checksum: int  # of all ids and weights
    num_active: list[int]  # T of each layer; of each pass, where it was shadowed


@dataclass(frozen=True, slots=True)
class Replica:
    server: Server
    steps_at: Path  # a file for each rank

    def change(self, **values: float) -> None:
        body = {"server_args": {f"lynx_{name}": value for name, value in values.items()}}
        assert self.server.post("/set_internal_state", body) == [True]

    def state(self) -> dict[str, Any]:
        state = self.server.lynx()
        assert state is not None
        return state

    def steps(self, phase: str = "DECODE") -> list[Step]:
        """The steps that both ranks have run, of a phase; the same on both, bit for bit."""
        deadline = time.monotonic() + 10.0  # rank 0 may answer before rank 1 has written
        first, second = self._lines(0), self._lines(1)
        while len(first) != len(second) and time.monotonic() < deadline:
            time.sleep(0.05)
            first, second = self._lines(0), self._lines(1)
        assert first == second
        steps = [Step(*json.loads(line)) for line in first]
        return [step for step in steps if step.phase == phase]

    def _lines(self, rank: int) -> list[str]:
        return (self.steps_at / str(rank)).read_text().splitlines()


@pytest.fixture(scope="module", params=[1, 2], ids=["halves", "whole"])
def replica(
    request: pytest.FixtureRequest,
    forks: ForkServer,
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Replica]:
    """Two ranks under the probe."""
    steps_at = tmp_path_factory.mktemp("steps")
    spread = ("--tp-size=2", f"--ep-size={request.param}")
    options = ("--sleep-on-idle", "--enable-tokenizer-batch-encode", *spread, "--moe-backend=lynx")
    probed = {"plugin": "tests.e2e.rank_probe", "RANK_PROBE": str(steps_at)}
    log = tmp_path_factory.mktemp("ranks") / "log"
    with ForkedServer(forks, model, log, options, **probed) as server:
        yield Replica(server, steps_at)


def test_two_ranks_answer_as_one_does(
    replica: Replica, plain: Server, prompts: list[str], generate: Generate
) -> None:
    expected = generate(plain, prompts[:16], max_new_tokens=64)
    found = generate(replica.server, prompts[:16], max_new_tokens=64)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    assert not any(answer.report["degraded"] for answer in found)
    assert len(replica.steps()) >= 63


def test_a_cap_holds_on_both_ranks_in_every_step(
    replica: Replica, prompts: list[str], generate: Generate
) -> None:
    before = len(replica.steps())
    replica.change(budget=16)
    tiers = ["exact", *["flexible"] * 15]
    answers = generate(replica.server, prompts[:16], tiers, ignore_eos=True, max_new_tokens=40)
    degraded = [answer.report["degraded"] for answer in answers]
    assert degraded == [False, *[True] * 15]
    cut = replica.steps()[before:]
    assert len(cut) >= 39
    # Sixteen, or as many as the exact row and the floors of the others need.
    assert max(max(step.num_active) for step in cut) <= 4 + 15
    assert replica.state()["ranks"]["unforeseen"] == 0
    replica.change(budget=0)


def test_ranks_agree_while_the_controller_moves_and_steps_are_shadowed(
    replica: Replica, prompts: list[str], generate: Generate
) -> None:
    before = replica.state()["ranks"]
    first = len(replica.steps())
    replica.change(slo_itl_ms=0.01, min_retained_mass=0.4, shadow_share=0.3)
    generate(replica.server, prompts[:12], ignore_eos=True, max_new_tokens=30)
    assert replica.state()["decision"]["share"] < 0.6
    replica.change(slo_itl_ms=60_000)
    generate(replica.server, prompts[:4], ignore_eos=True, max_new_tokens=30)
    after = replica.state()
    assert after["decision"]["share"] == 1.0
    assert after["ranks"]["orders"] > before["orders"] + 2
    assert after["ranks"]["checks"] > before["checks"]
    steps = replica.steps()[first:]
    assert len(steps) >= 58
    passes = [len(step.num_active) // LAYERS for step in steps]
    assert passes.count(2) == after["shadow"]["steps"] > 0
