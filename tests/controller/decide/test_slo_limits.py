"""Kinds of limits, and two at once."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.plant.simulator import Load, Plant, Sample, simulate
from lynx_controller import Controller, Observation, Slo
from lynx_controller.decide.slo_limits import SloLimits


def run(slo: Slo, steps: int = 500, **plant: float) -> list[Sample]:
    controller = Controller(slo, 8, 64, 4)

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        decision = controller.step(seen)
        return decision.demand, decision.budget

    return simulate(Plant(seed=3, **plant), decide, [Load(16)] * steps)  # type: ignore[arg-type]


def share_of(samples: list[Sample]) -> float:
    return float(np.mean([each.share for each in samples[200:]]))


def test_tpot_is_the_mean_gap_and_lets_single_gaps_be_late() -> None:
    samples = run(Slo(tpot_ms=14.0))
    gaps = np.array([each.gap_ms for each in samples[100:]])
    means = gaps[: len(gaps) // 64 * 64].reshape(-1, 64).mean(axis=1)  # requests of 64 tokens
    assert means.max() <= 14.0
    assert np.percentile(gaps, 95) > 14.0
    assert share_of(samples) > share_of(run(Slo(itl_ms=14.0))) + 0.05


def test_a_higher_percentile_of_the_same_limit_cuts_more() -> None:
    shares = [share_of(run(Slo(itl_ms=13.5, percentile=each))) for each in (50.0, 95.0, 99.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[2] + 0.05


def test_of_two_limits_the_stricter_one_binds() -> None:
    loose, strict = Slo(itl_ms=15.0, percentile=99.0), Slo(tpot_ms=12.6)
    alone = [share_of(run(each)) for each in (loose, strict)]
    both = replace(loose, tpot_ms=strict.tpot_ms)
    assert share_of(run(both)) == pytest.approx(min(alone), abs=0.03)


def test_limits_are_those_that_are_set() -> None:
    assert SloLimits.of(Slo(15.0, 99.0, 25.0)).limits_ms == {99.0: 15.0, None: 25.0}
    assert SloLimits.of(Slo()).limits_ms == {}
    assert not SloLimits.of(Slo())
    assert SloLimits.of(Slo(ttft_ms=1.0))


def test_the_slo_can_be_changed_at_run_time() -> None:
    controller = Controller(Slo(), 8, 64, 4)
    assert controller.slo == Slo()
    controller.set_slo(Slo(20.0, tpot_ms=10.0))
    assert controller.slo == Slo(20.0, tpot_ms=10.0)
    assert (controller.state()["slo_ms"], controller.state()["tpot_ms"]) == (20.0, 10.0)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), 1e7])
def test_tpot_is_checked(wrong: float) -> None:
    with pytest.raises(ValueError, match="tpot_ms"):
        Slo(tpot_ms=wrong)
