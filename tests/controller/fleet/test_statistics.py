"""Pooled statistics of step cost: arithmetic, and what a store may hold instead."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lynx_controller.fleet.statistics import StepStatistics, fit

BASE, ROW, SLOPE = 7.0, 0.1, 0.04


def samples(seed: int, steps: int, slower: float = 1.0) -> list[tuple[float, float, float]]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, 33, steps)
    active = rng.uniform(8.0, 16.0, steps) * rows ** rng.uniform(0.4, 0.9, steps)
    ms = slower * (BASE + ROW * rows + SLOPE * active) * (1.0 + 0.05 * rng.standard_normal(steps))
    return list(zip(active.tolist(), rows.tolist(), ms.tolist(), strict=True))


def test_a_fit_finds_the_terms() -> None:
    found = fit([StepStatistics.of(samples(0, 5000))])
    assert found.base_ms == pytest.approx(BASE, rel=0.03)
    assert found.slope_ms == pytest.approx(SLOPE, rel=0.1)
    assert found.row_ms == pytest.approx(ROW, abs=0.03)


def test_replicas_are_pooled() -> None:
    parts = [StepStatistics.of(samples(seed, 500, slower)) for seed, slower in ((1, 0.9), (2, 1.1))]
    found = fit(parts)
    whole = found.base_ms + 16 * found.row_ms + 60 * found.slope_ms
    assert whole == pytest.approx(BASE + 16 * ROW + 60 * SLOPE, rel=0.05)


def test_few_steps_give_a_finite_cost() -> None:
    found = fit([StepStatistics.of([(20.0, 4.0, 10.0)])])
    assert found.base_ms + 4 * found.row_ms + 20 * found.slope_ms == pytest.approx(10.0, rel=0.02)


def test_merging_decays_the_older() -> None:
    one, two = StepStatistics.of(samples(1, 8)), StepStatistics.of(samples(2, 8))
    merged = one.merged(two, keep=0.5)
    assert merged.steps == 12.0
    np.testing.assert_allclose(merged.gram, 0.5 * one.gram + two.gram)
    np.testing.assert_allclose(merged.moment, 0.5 * one.moment + two.moment)


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf])
def test_steps_without_a_time_do_not_count(ms: float) -> None:
    found = StepStatistics.of([(20.0, 4.0, ms), (20.0, 4.0, 10.0)])
    assert found.steps == 1.0
    assert np.isfinite(found.gram).all()


def test_they_travel_as_json() -> None:
    one = StepStatistics.of(samples(1, 8))
    back = StepStatistics.from_dict(json.loads(json.dumps(one.to_dict())))
    assert back.steps == one.steps
    np.testing.assert_array_equal(back.gram, one.gram)
    np.testing.assert_array_equal(back.moment, one.moment)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0.0},
        {"steps": math.nan},
        {"gram": [[1.0]]},
        {"gram": [[math.nan] * 3] * 3},
        {"gram": "x"},
        {"moment": [1.0, 2.0]},
    ],
)
def test_other_shapes_and_values_are_refused(change: dict[str, object]) -> None:
    record = StepStatistics.of(samples(1, 8)).to_dict()
    with pytest.raises(ValueError, match=r"expected|could not convert"):
        StepStatistics.from_dict({**record, **change})
