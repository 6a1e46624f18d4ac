"""The quality guard: mean KL under its limit, with the plant's gain unknown and its tail heavy."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from lynx_controller.learn.quality import Quality

LIMIT = 0.01
KEY = (Phase.DECODE, 16)
LAYERS, EXPERTS, TOP_K = 8, 64, 4


def run(
    steps: int = 5_000, slo_ms: float = 9.0, limit: float | None = LIMIT, **plant: float
) -> tuple[list[Sample], list[Decision]]:
    """An SLO that no cut meets (all of it is asked for), unless told otherwise."""
    config = ControllerConfig(max_quality_loss=limit, min_retained_mass=0.2)
    controller = Controller(Slo(itl_ms=slo_ms), LAYERS, EXPERTS, TOP_K, config)
    decisions = []

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        decisions.append(controller.step(seen))
        return decisions[-1].demand, decisions[-1].budget

    settings = {"shadow_share": 0.05, "kl_gain": 0.1, "seed": 3, **plant}
    return simulate(Plant(**settings), decide, [Load(16)] * steps), decisions  # type: ignore[arg-type]


def mean_kl(samples: list[Sample]) -> float:
    return float(np.mean([each.kl for each in samples]))


@pytest.mark.parametrize("gain", [0.03, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("bend", [2.0, 4.0])
def test_the_limit_holds_whatever_the_gain(gain: float, bend: float) -> None:
    samples, decisions = run(kl_gain=gain, kl_bend=bend)
    assert mean_kl(samples[3_000:]) <= LIMIT
    if gain <= 1.0:  # the prior is 0.3; what is far beyond it takes samples to be believed
        assert mean_kl(samples[:1_000]) <= 1.5 * LIMIT
    assert {each.reason for each in decisions[3_000:]} <= {Reason.GUARD, Reason.SATURATED}


def test_the_limit_is_used_once_the_gain_is_known() -> None:
    found = [mean_kl(run(seed=seed, kl_bend=2.0)[0][3_000:]) for seed in range(4)]
    assert np.median(found) > 0.5 * LIMIT


def test_a_tail_ten_times_as_heavy_is_held_on_the_median() -> None:
    found = [mean_kl(run(seed=seed, kl_rare=0.001)[0][3_000:]) for seed in range(8)]
    assert np.median(found) <= LIMIT
    assert max(found) <= 2.0 * LIMIT


def test_without_shadow_passes_the_prior_binds_through_retained_mass() -> None:
    _, decisions = run(steps=1_000, shadow_share=0.0)
    assert decisions[-1].reason is Reason.GUARD
    assert decisions[-1].predicted_kl == pytest.approx(LIMIT, rel=0.05)
    assert 0.4 < decisions[-1].share < 0.95


def test_a_limit_that_does_not_bind_changes_nothing() -> None:
    free, _ = run(steps=500, slo_ms=13.5, limit=None)
    wide, decisions = run(steps=500, slo_ms=13.5, limit=10.0)
    assert [each.share for each in wide] == [each.share for each in free]
    assert Reason.GUARD not in {each.reason for each in decisions}


def test_a_limit_set_at_run_time_walks_up_and_lets_go() -> None:
    controller = Controller(Slo(itl_ms=9.0), LAYERS, EXPERTS, TOP_K)
    shares = []

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        if seen.step in (200, 400):
            controller.set_max_quality_loss(1e-4 if seen.step == 200 else None)
        decision = controller.step(seen)
        shares.append(decision.share)
        return decision.demand, decision.budget

    simulate(Plant(seed=3), decide, [Load(16)] * 600)
    rises = np.diff(shares[198:400])
    assert shares[198] == pytest.approx(0.5, abs=0.03)
    assert max(rises) <= controller.config.handover + 1e-9
    assert shares[390] > 0.8
    assert shares[-1] == pytest.approx(0.5, abs=0.03)
    for wrong in (0.0, -1.0, math.nan, 11.0, "much"):
        with pytest.raises(ValueError, match="max_quality_loss"):
            controller.set_max_quality_loss(wrong)  # type: ignore[arg-type]


def taught(loss: float = 0.04, kl: float = 0.004, rows: int = 5_000) -> Quality:
    quality = Quality(prior_kl=0.3)
    for _ in range(rows // 20):
        quality.learn(KEY, 20, 0.5, [1.0 - math.sqrt(loss)] * 2, kl, 0.9)
    return quality


def test_a_gain_is_learned_and_the_prior_leaves() -> None:
    quality = taught()
    assert quality.gain == pytest.approx(0.1, rel=0.1)
    assert quality.gain < quality.upper < 1.5 * quality.gain
    assert quality.agreement == pytest.approx(0.9)
    assert quality.kl_at(KEY, quality.share_for(KEY, 0.004)) == pytest.approx(0.004)


def test_cuts_by_an_operators_demand_teach_the_gain_alone() -> None:
    quality = Quality(prior_kl=0.3)
    for _ in range(250):
        quality.learn(KEY, 20, None, [0.8] * 2, 0.004, None)
    assert quality.rows == 5_000
    assert quality.gain == pytest.approx(0.1, rel=0.1)
    assert quality.spills == {}


def test_beyond_what_was_sampled_more_is_expected() -> None:
    quality = taught()
    inside, beyond = quality.share_for(KEY, 0.001), quality.share_for(KEY, 0.02)
    assert quality.kl_at(KEY, inside) == pytest.approx(0.001)
    assert quality.kl_at(KEY, beyond) == pytest.approx(0.02)
    assert quality.kl_at(KEY, beyond) > 1.5 * quality.upper * quality.lost_at(KEY, beyond) ** 2


def test_what_a_cut_loses_is_learned_and_moves_the_floor() -> None:
    quality = Quality(prior_kl=0.3)
    assert quality.lost_at(KEY, quality.share_keeping(KEY, 0.75)) == pytest.approx(0.25)
    assert quality.share_keeping(KEY, 1.0) == 1.0
    before = quality.share_keeping(KEY, 0.75)
    for _ in range(500):
        quality.learn(KEY, 20, 0.6, [0.7, 0.74], None, None)  # 0.28 at 0.4 taken
    assert quality.lost_at(KEY, 0.6) == pytest.approx(0.28, rel=0.01)
    assert quality.share_keeping(KEY, 0.75) > before
    assert quality.lost_at((Phase.DECODE, 32), 0.6) == pytest.approx(0.28, rel=0.01)
    for _ in range(5000):
        quality.learn(KEY, 20, 0.6, [0.0] * 2, None, None)
    assert quality.share_keeping(KEY, 0.75) == pytest.approx(1.0 - (0.25 / 2.0) ** 0.5)


def test_one_sample_adds_at_most_the_upper_bound_and_light_cuts_teach_little() -> None:
    quality = taught()
    before, upper = quality.gain, quality.upper
    quality.learn(KEY, 20, 0.5, [0.8] * 2, 49.0, None)
    assert before < quality.gain <= before + upper
    quality = taught()
    for _ in range(250):
        quality.learn(KEY, 20, 0.95, [0.999] * 2, 0.0, None)
    assert quality.gain == pytest.approx(before, rel=0.15)


def test_what_is_not_sampled_again_is_slowly_forgotten() -> None:
    quality = taught()
    before = quality.upper
    for _ in range(20_000):
        quality.learn(KEY, 20, 0.5, [0.8] * 2, None, None)
    assert 1.005 * before < quality.upper < 0.9


@pytest.mark.parametrize(
    "change",
    [
        {"shadow_kl": math.nan},
        {"shadow_kl": math.inf},
        {"shadow_kl": -1.0},
        {"shadow_kl": 1e9},
        {"shadow_kl": "bad"},
        {"shadow_agreement": math.nan},
        {"shadow_agreement": [1]},
        {"retained_mass": [math.nan] * LAYERS, "shadow_kl": 1.0},
        {"retained_mass": [2.0] * LAYERS, "shadow_kl": 1.0},
        {"batch": Batch.of(16, Phase.MIXED), "shadow_kl": 1.0},
        {"batch": Batch.of(16, Phase.IDLE), "shadow_kl": 1.0},
        {"batch": Batch.of(16, flexible_rows=0), "shadow_kl": 1.0},
        {"retained_mass": [1.0] * LAYERS, "shadow_kl": 1.0},
        {"step_ms": math.nan, "shadow_kl": 1.0},
    ],
)
def test_what_is_no_sample_teaches_nothing_and_never_raises(change: dict[str, object]) -> None:
    config = ControllerConfig(max_quality_loss=LIMIT)
    controller = Controller(Slo(itl_ms=9.0), LAYERS, EXPERTS, TOP_K, config)
    last: list[Observation] = []

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        last[:] = [seen]
        decision = controller.step(seen)
        return decision.demand, decision.budget

    simulate(Plant(seed=1, kl_gain=0.1, shadow_share=0.2), decide, [Load(16)] * 200)
    before = controller.state()
    for i in range(1, 4):
        wrong = replace(last[0], shadow_kl=None, step=last[0].step + i)
        decision = controller.step(replace(wrong, **change))  # type: ignore[arg-type]
        assert decision.reason is not Reason.FAILED
    after = controller.state()
    assert after["kl_gain"] == pytest.approx(before["kl_gain"], rel=1e-3)
    assert after["shadow_agreement"] == before["shadow_agreement"]


masses = st.lists(st.floats(-0.5, 1.5), max_size=4)
kls = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(st.integers(-2, 500), st.floats(0.0, 1.0), masses, kls), max_size=30))
def test_whatever_is_seen_the_share_is_in_range_and_falls_with_the_limit(
    seen: list[tuple[int, float, list[float], float | None]],
) -> None:
    quality = Quality(prior_kl=0.3)
    for rows, share, kept, kl in seen:
        quality.learn(KEY, rows, share, kept, kl, kl)
    shares = [quality.share_for(KEY, limit) for limit in (1e-7, 1e-4, 1e-2, 10.0)]
    assert all(0.0 <= each <= 1.0 for each in shares)
    assert shares == sorted(shares, reverse=True)
    assert 0.0 < quality.gain <= quality.upper < math.inf
