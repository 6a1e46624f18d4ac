"""The closed loop on the simulated plant: the bars of controller/README.md, few seeds each."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plant.metrics import (
    overshoot,
    recovery_steps,
    reversals_per_1000,
    settling_steps,
    violation_rate,
)
from benchmarks.plant.simulator import Load, Plant, Sample, simulate
from lynx_controller import (
    Batch,
    Controller,
    ControllerConfig,
    Decision,
    Observation,
    Phase,
    Reason,
    Slo,
)

SEEDS = range(8)
P98 = 1.1


def cost_ms(plant: Plant, rows: int, share: float) -> float:
    return plant.step_ms(rows, plant.active_at(rows, share))


def between(plant: Plant, share: float, rows: int = 16) -> float:
    """An SLO that the 98th percentile meets this share of the way from floor to full."""
    low, high = cost_ms(plant, rows, 0.5), cost_ms(plant, rows, 1.0)
    return P98 * (low + share * (high - low))


def close(
    plant: Plant, slo_ms: float, loads: list[Load], lag_steps: int = 2, **config: float
) -> tuple[list[Sample], list[Decision]]:
    controller = Controller(
        Slo(itl_ms=slo_ms),
        plant.num_layers,
        plant.num_experts,
        plant.top_k,
        ControllerConfig(**config),  # type: ignore[arg-type]
    )
    decisions: list[Decision] = []

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        decisions.append(controller.step(seen))
        return decisions[-1].demand, decisions[-1].budget

    return simulate(plant, decide, loads, lag_steps), decisions


def gaps(samples: list[Sample]) -> list[float]:
    return [sample.gap_ms for sample in samples]


def test_load_step_up_and_down_with_the_slope_unknown() -> None:
    settled, recovered, over, violated = [], [], [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        plant = Plant(seed=seed, warmup=8.0, spill=rng.uniform(0.93, 1.25))
        slo_ms = between(plant, 0.5)
        prior = plant.slope_ms * math.exp(rng.uniform(math.log(0.33), math.log(3.0)))
        loads = [Load(4)] * 100 + [Load(16)] * 300 + [Load(4)] * 60
        samples, _ = close(plant, slo_ms, loads, prior_slope_ms=prior)
        settled.append(settling_steps(gaps(samples[100:400]), slo_ms))
        over.append(overshoot(gaps(samples[100:400]), slo_ms))
        violated.append(violation_rate(gaps(samples[110:400]), slo_ms))
        recovered.append(recovery_steps([sample.share for sample in samples[400:]]))
    assert statistics.median(settled) <= 10
    assert max(over) < 0.15
    assert statistics.median(violated) <= 0.02
    assert max(recovered) <= 25


@pytest.mark.parametrize("seed", SEEDS)
def test_constant_load_does_not_hunt(seed: int) -> None:
    plant = Plant(seed=seed)
    samples, _ = close(plant, between(plant, 0.5), [Load(16)] * 600)
    assert reversals_per_1000([sample.share for sample in samples[100:]]) <= 2.0


@pytest.mark.parametrize("share", [0.98, 1.0, 1.02, 1.05])
def test_the_edge_of_full_quality_does_not_flap(share: float) -> None:
    plant = Plant(seed=1)
    samples, _ = close(plant, between(plant, share), [Load(16)] * 600)
    assert reversals_per_1000([sample.share for sample in samples[100:]]) <= 4.0


@pytest.mark.parametrize("lag_steps", [1, 2, 3, 4])
@pytest.mark.parametrize("ratio", [0.33, 1.0, 3.0])
def test_stable_for_every_lag_and_gain_error(lag_steps: int, ratio: float) -> None:
    plant = Plant(seed=5)
    slo_ms = between(plant, 0.4)
    samples, _ = close(
        plant, slo_ms, [Load(16)] * 400, lag_steps, prior_slope_ms=ratio * plant.slope_ms
    )
    assert settling_steps(gaps(samples), slo_ms) <= 25
    assert np.std([sample.share for sample in samples[200:]]) < 0.03


def test_infeasible_saturates_at_the_floor_and_leaves_it_at_once() -> None:
    plant = Plant(seed=2)
    slo_ms = max(P98 * 1.1 * cost_ms(plant, 8, 1.0), 0.97 * cost_ms(plant, 32, 0.5))
    loads = [Load(8)] * 80 + [Load(32)] * 500 + [Load(8)] * 40
    samples, decisions = close(plant, slo_ms, loads)
    stuck = decisions[120:580]
    assert all(decision.saturated for decision in stuck)
    assert {round(decision.share, 1) for decision in stuck} == {0.5}
    assert np.mean([sample.mass for sample in samples[130:580]]) == pytest.approx(0.75, abs=0.01)
    assert {decision.reason for decision in stuck} == {Reason.SATURATED}
    assert recovery_steps([sample.share for sample in samples[580:]]) <= 5


@pytest.mark.parametrize("where", ["outside_ms", "inside_ms"])
def test_time_that_no_cut_wins_back_does_not_cut(where: str) -> None:
    plant = Plant(seed=3)
    slo_ms = between(plant, 0.6)
    slowed = Load(16, **{where: 50.0})
    loads = [Load(16)] * 200 + [slowed] * 200 + [Load(16)] * 100
    samples, decisions = close(plant, slo_ms, loads)
    before = samples[199].share
    assert min(sample.share for sample in samples[230:400]) >= before - 0.1
    assert {decision.reason for decision in decisions[230:399]} == {Reason.OUTSIDE}
    assert samples[-1].share == pytest.approx(before, abs=0.1)


def test_a_few_prefills_between_steps_do_not_cut() -> None:
    plant = Plant(seed=4)
    loads = [Load(16, outside_ms=40.0 * (i % 8 == 0)) for i in range(400)]
    quiet, _ = close(replace(plant), between(plant, 0.6), [Load(16)] * 400)
    noisy, _ = close(plant, between(plant, 0.6), loads)
    assert noisy[-1].share >= quiet[-1].share - 0.06


def test_time_that_a_cut_can_win_back_is_paid() -> None:
    plant = Plant(seed=6)
    slo_ms = between(plant, 0.7)
    extra = 0.3 * (cost_ms(plant, 16, 1.0) - cost_ms(plant, 16, 0.5))
    loads = [Load(16)] * 200 + [Load(16, outside_ms=extra)] * 300
    samples, _ = close(plant, slo_ms, loads)
    assert samples[-1].share < samples[199].share - 0.05
    assert violation_rate(gaps(samples[260:]), slo_ms) <= 0.03


def test_dearer_experts_are_learned_and_paid() -> None:
    plant = Plant(seed=7)
    slo_ms = P98 * 1.1 * cost_ms(plant, 16, 1.0)
    controller = Controller(Slo(itl_ms=slo_ms), 8, 64, 4)

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        if seen.step == 200:
            plant.slope_ms *= 1.5
        decision = controller.step(seen)
        return decision.demand, decision.budget

    samples = simulate(plant, decide, [Load(16)] * 500)
    assert settling_steps(gaps(samples[200:]), slo_ms) <= 25
    assert samples[-1].share > 0.5


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10.0), st.integers(1, 3), st.floats(0.1, 0.9), st.floats(0.6, 1.8))
def test_converges_for_any_gain_error_and_lag(
    ratio: float, lag_steps: int, share: float, spill: float
) -> None:
    plant = Plant(noise=0.0, jitter=0.0, spill=spill)
    slo_ms = between(plant, share)
    samples, _ = close(
        plant, slo_ms, [Load(16)] * 200, lag_steps, prior_slope_ms=ratio * plant.slope_ms
    )
    # Without noise the feedback shrinks for long: the share still climbs, and may step back once.
    late = [sample.share for sample in samples[-60:]]
    assert reversals_per_1000(late) <= 2 * 1000 / 60  # back, and up again
    assert max(late) - late[-1] <= 0.05
    assert max(gaps(samples[-60:])) <= 1.03 * slo_ms


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 1.0), st.floats(1.02, 1.5), st.floats(0.6, 1.8))
def test_a_looser_slo_never_settles_at_a_lower_share(
    share: float, looser: float, spill: float
) -> None:
    settled = []
    for factor in (1.0, looser):
        plant = Plant(noise=0.0, jitter=0.0, spill=spill)
        samples, _ = close(plant, factor * between(plant, share), [Load(16)] * 150)
        settled.append(samples[-1].share)
    # Two runs may stop at different places of the dead band.
    assert settled[1] >= settled[0] - 0.03


numbers = st.one_of(
    st.floats(), st.integers(-(10**20), 10**20), st.sampled_from([float("nan"), 1e308, -1.0, 0.0])
)
batches = st.builds(
    Batch,
    phase=st.sampled_from(Phase),
    rows=st.integers(-2, 200) | st.sampled_from([10**9, float("nan"), None]),
    flexible_rows=st.none() | st.integers(-5, 300),
    size_class=st.integers(-2, 300) | st.none(),
)
observations = st.builds(
    Observation,
    step=st.integers(-5, 60) | st.just(10**30),
    batch=batches,
    step_ms=st.floats(0.1, 100.0) | numbers,
    active_experts=st.lists(st.integers(0, 64), min_size=8, max_size=8)
    | st.lists(numbers, max_size=9)
    | st.none(),
    retained_mass=st.lists(numbers, max_size=8),
    kv_tokens=numbers,
    itl_ms=st.none() | numbers,
    demand=st.none() | numbers,
    budget_applied=st.none() | st.integers(-5, 100) | st.lists(st.integers(0, 70), max_size=9),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(observations, max_size=40), st.sampled_from([None, 0.5, 12.0, 1e5]))
def test_anything_may_be_observed(seen: list[Observation], slo_ms: float | None) -> None:
    controller = Controller(Slo(itl_ms=slo_ms), 8, 64, 4)
    for each in seen:
        decision = controller.step(each)
        assert 0.25 <= decision.share <= 1.0
        assert decision.demand == 1.0
        assert len(decision.budget) == len(decision.expected_active) == 8
        assert all(isinstance(cap, int) and 4 <= cap <= 64 for cap in decision.budget)
        assert all(0.0 <= active <= 64.0 + 1e-6 for active in decision.expected_active)
        assert math.isfinite(decision.predicted_ms)
        assert math.isfinite(decision.target_ms)
        if decision.reason is Reason.FAILED:
            assert decision.share == 1.0
            assert decision.budget == (64,) * 8
    # Whatever was seen, the controller works afterwards.
    for step in range(10**31, 10**31 + 30):
        decision = controller.step(Observation(step, Batch.of(16, size_class=16), 14.0, [30] * 8))
        assert decision.reason is not Reason.FAILED
