"""The running server's controls and what it tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loadtests.server import Server
from lynx_sglang.loop.metrics import GAUGES

pytestmark = pytest.mark.e2e

Generate = Callable[..., list[Any]]
Settings = Callable[..., bool]
COUNTERS = (
    "lynx_requests_total",
    "lynx_decode_tokens_total",
    "lynx_degraded_tokens_total",
    "lynx_store_failures_total",
    "lynx_decisions_total",
    "lynx_floor_hits_total",
    "lynx_controller_failures_total",
)


def test_server_info_tells_the_state(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    before = lynx.lynx()
    assert before is not None
    assert (before["num_layers"], before["num_experts"], before["top_k"]) == (8, 64, 4)
    assert before["settings"]["policy"] == "lynx"
    generate(lynx, prompts[:4], ignore_eos=True, max_new_tokens=20)
    after = lynx.lynx()
    assert after is not None
    steps = after["decode_steps"] - before["decode_steps"]
    assert steps >= 19  # the prefill gives the first token
    active = (after["active_experts_sum"] - before["active_experts_sum"]) / steps
    assert 4 <= active <= 16  # four rows of top-4
    assert after["retained_mass_sum"] - before["retained_mass_sum"] == pytest.approx(steps)
    assert len(after["decision"]["budget"]) == 8


def test_plain_sglang_has_no_lynx_part(plain: Server) -> None:
    assert plain.lynx() is None


def test_settings_change_at_run_time(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    assert settings(slo_itl_ms=25, budget=16, demand=0.7, min_retained_mass=0.6, floor=2)
    state = lynx.lynx()
    assert state is not None
    expected = {"slo_itl_ms": 25, "budget": 16, "demand": 0.7, "min_retained_mass": 0.6, "floor": 2}
    assert {name: state["settings"][name] for name in expected} == expected
    assert state["decision"]["budget"] == [16] * 8
    assert state["decision"]["demand"] == 0.7
    generate(lynx, prompts[:2], max_new_tokens=4)
    state = lynx.lynx()
    assert state is not None
    assert state["decision"]["reason"] == "override"


@pytest.mark.parametrize(
    "wrong",
    [
        {"slo_itl_ms": -5},
        {"budget": 2.5},
        {"demand": 1.5},
        {"min_retained_mass": 0},
        {"floor": 0},
        {"policy": 1},
        {"slo_itl_ms": 30, "floor": 65},  # all or nothing
    ],
)
def test_a_wrong_value_changes_nothing(
    lynx: Server, settings: Settings, wrong: dict[str, float]
) -> None:
    before = lynx.lynx()
    assert not settings(**wrong)
    after = lynx.lynx()
    assert before is not None
    assert after is not None
    assert after["settings"] == before["settings"]


def test_an_slo_that_cannot_be_met_cuts_to_the_floor_and_no_further(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    assert settings(slo_itl_ms=0.01, min_retained_mass=0.6)
    generate(lynx, prompts[:8], ignore_eos=True, max_new_tokens=60)  # learns what cuts cost
    before = lynx.lynx()
    generate(lynx, prompts[:8], ignore_eos=True, max_new_tokens=60)
    state = lynx.lynx()
    assert before is not None
    assert state is not None
    assert state["decision"]["saturated"]
    assert state["decision"]["share"] < 0.6
    assert mass_between(before, state) == pytest.approx(0.6, abs=0.12)
    assert settings(slo_itl_ms=60_000)
    generate(lynx, prompts[:8], ignore_eos=True, max_new_tokens=60)
    state = lynx.lynx()
    assert state is not None
    assert state["decision"]["share"] == 1.0
    assert not state["decision"]["saturated"]


def mass_between(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Mean retained mass of the decode steps between two readings."""
    steps = after["decode_steps"] - before["decode_steps"]
    mass: float = (after["retained_mass_sum"] - before["retained_mass_sum"]) / steps
    return mass


def test_requests_that_wait_for_a_place_buy_faster_steps(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    def cuts() -> int:
        state = lynx.lynx()
        assert state is not None
        decisions: dict[str, int] = state["decisions"]
        return decisions.get("queue", 0) + decisions.get("saturated", 0)

    more_than_places = prompts[:72]
    for ttft_ms in (0, 100):
        assert settings(slo_ttft_ms=ttft_ms)
        before = cuts()
        generate(lynx, more_than_places, ignore_eos=True, max_new_tokens=40)
        assert (cuts() - before > 10) == (ttft_ms > 0)
    state = lynx.lynx()
    assert state is not None
    assert state["controller"]["queue_ms"] > 0.0


def test_metrics_are_exported(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    assert settings(demand=0.5)
    generate(lynx, prompts[:2], max_new_tokens=8)
    lines = lynx.get("/metrics").splitlines()
    for name in (*(gauge.name for gauge in GAUGES), *COUNTERS, "lynx_step_seconds_bucket"):
        assert any(line.startswith(f"sglang:{name}{{") for line in lines), name
    (demand,) = [line for line in lines if line.startswith("sglang:lynx_demand{")]
    assert 'model_name="' in demand
    assert float(demand.split()[-1]) == 0.5
    phases = [line for line in lines if line.startswith("sglang:lynx_step_seconds_count{")]
    assert any('phase="decode"' in line for line in phases)
