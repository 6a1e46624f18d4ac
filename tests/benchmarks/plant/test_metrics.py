import pytest

from benchmarks.plant.metrics import (
    overshoot,
    recovery_steps,
    reversals_per_1000,
    settling_steps,
    violation_rate,
)


def test_violation_rate() -> None:
    assert violation_rate([1.0, 2.0, 3.0, 4.0], 3.0) == 0.25


def test_settling_counts_until_every_later_window_fits() -> None:
    gaps = [30.0] * 5 + [10.0] * 100
    # Three bad gaps in 64 are below the 95th percentile's reach, four are not.
    assert settling_steps(gaps, 20.0) == 2
    assert settling_steps([10.0] * 105, 20.0) == 0
    assert settling_steps([30.0] * 105, 20.0) == 105


def test_overshoot_is_relative_to_the_slo() -> None:
    assert overshoot([25.0] * 64 + [10.0] * 64, 20.0) == pytest.approx(0.25)


def test_reversals_ignore_moves_below_the_tolerance_until_they_add_up() -> None:
    assert reversals_per_1000([1.0, 0.9, 0.8, 0.9, 0.8]) == 1000 * 2 / 5
    assert reversals_per_1000([0.8, 0.802, 0.8, 0.802] * 10) == 0.0
    assert reversals_per_1000([0.8 + 0.001 * i for i in range(50)] + [0.7]) == 1000 / 51


def test_recovery_is_for_good() -> None:
    assert recovery_steps([0.5, 1.0, 0.9, 1.0, 1.0]) == 3
    assert recovery_steps([1.0, 1.0]) == 0
    assert recovery_steps([0.9]) == 1
