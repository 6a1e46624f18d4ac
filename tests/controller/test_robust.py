"""Whatever the controller is told, it stays in range, and where it cannot see it cuts nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plant.simulator import Load, Plant, simulate
from lynx_controller import Batch, Controller, Decision, Observation, Phase, Reason, Slo
from lynx_controller.learn.gate import BLIND

LAYERS, EXPERTS, TOP_K = 8, 64, 4
FULL = (EXPERTS,) * LAYERS

UNUSABLE = [
    {"step_ms": math.nan},
    {"step_ms": math.inf},
    {"step_ms": -math.inf},
    {"step_ms": -1.0},
    {"step_ms": 0.0},
    {"step_ms": 1e300},
    {"batch": Batch(Phase.DECODE, -1, 0, 16)},
    {"batch": Batch(Phase.DECODE, math.nan, 0, 16)},  # type: ignore[arg-type]
    {"step": 0},  # out of order
    {"step": 100},  # repeated
    {"step_ms": None},  # raises inside
    {"batch": Batch(Phase.DECODE, "many", 0, 16)},  # type: ignore[arg-type]
    {"batch": None},
]


def cut() -> tuple[Controller, Observation]:
    """A controller that holds a cut after 100 steps, and the last thing it saw."""
    plant = Plant(seed=1)
    controller = Controller(Slo(itl_ms=13.5), LAYERS, EXPERTS, TOP_K)
    last: list[Observation] = []

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        last[:] = [seen]
        decision = controller.step(seen)
        return decision.demand, decision.budget

    samples = simulate(plant, decide, [Load(16)] * 100)
    assert samples[-1].share < 0.95
    return controller, last[0]


def assert_full(decision: Decision) -> None:
    assert (decision.share, decision.demand) == (1.0, 1.0)
    assert decision.budget == FULL


@pytest.mark.parametrize("change", UNUSABLE)
def test_a_run_of_unusable_steps_ends_at_full_quality(change: dict[str, object]) -> None:
    controller, last = cut()
    for i in range(1, BLIND + 3):
        seen = replace(last, **{"step": last.step + i, **change})  # type: ignore[arg-type]
        decision = controller.step(seen)
    assert decision.reason in (Reason.BLIND, Reason.FAILED, Reason.FROZEN)
    assert_full(decision)
    back = controller.step(replace(last, step=10_000))
    assert back.reason not in (Reason.BLIND, Reason.FAILED, Reason.FROZEN)
    assert back.share < 1.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(UNUSABLE), min_size=BLIND, max_size=30))
def test_any_mixture_of_unusable_steps_ends_at_full_quality(
    changes: list[dict[str, object]],
) -> None:
    controller, last = cut()
    for i, change in enumerate(changes):
        seen = replace(last, **{"step": last.step + 1 + i, **change})  # type: ignore[arg-type]
        decision = controller.step(seen)
        assert 0.25 <= decision.share <= 1.0
    assert_full(decision)


def test_a_single_unusable_step_does_not_move_anything() -> None:
    controller, last = cut()
    held = controller.step(replace(last, step=last.step + 1))
    frozen = controller.step(replace(last, step=last.step + 2, step_ms=math.nan))
    assert frozen == replace(held, reason=Reason.FROZEN)


def test_idling_is_not_blindness() -> None:
    controller, last = cut()
    held = controller.step(replace(last, step=last.step + 1))
    for i in range(100):
        idle = replace(last, step=last.step + 2 + i, batch=Batch.of(0, Phase.IDLE), step_ms=0.0)
        assert controller.step(idle).share == held.share


def test_an_operators_demand_survives_blindness() -> None:
    controller, last = cut()
    controller.override(demand=0.6)
    controller.step(replace(last, step=last.step + 1))
    for i in range(2 * BLIND):
        decision = controller.step(replace(last, step=last.step + 2 + i, step_ms=math.nan))
    assert decision.demand == 0.6


clocks = st.floats(-1e12, 1e12) | st.sampled_from([0.0, 1e-9, 59_999.0, 60_001.0, math.nan])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(clocks, clocks, st.integers(-3, 200), st.integers(0, 64)), max_size=40),
    st.integers(1, 200),
)
def test_after_any_clock_a_plant_with_room_ends_at_full_quality(
    seen: list[tuple[float, float, int, int]], restart: int
) -> None:
    controller = Controller(Slo(itl_ms=40.0), LAYERS, EXPERTS, TOP_K)
    for i, (step_ms, itl_ms, step, active) in enumerate(seen):
        controller.step(
            Observation(
                i + step, Batch.of(16, size_class=16), step_ms, [active] * LAYERS, itl_ms=itl_ms
            )
        )
    decisions = []

    def decide(each: Observation) -> tuple[float, tuple[int, ...]]:
        decisions.append(controller.step(replace(each, step=restart + each.step)))
        return decisions[-1].demand, decisions[-1].budget

    simulate(Plant(seed=2), decide, [Load(16)] * 300)
    assert_full(decisions[-1])


@given(st.floats(1e-3, 1.2), st.integers(0, 3))
def test_the_stated_bound_is_the_recursions(gain: float, lag_steps: int) -> None:
    """b(n+1) = b(n) - g (b(n - lag) - b), g = kappa delta; 2 sin(pi / (4 lag + 2)) is its edge."""
    bound = 2.0 * math.sin(math.pi / (4.0 * lag_steps + 2.0))
    poles = np.roots(
        [1.0, -1.0, *[0.0] * (lag_steps - 1), gain] if lag_steps else [1.0, gain - 1.0]
    )
    is_stable = bool(np.abs(poles).max() < 1.0)
    if abs(gain - bound) > 1e-3:
        assert is_stable == (gain < bound)
