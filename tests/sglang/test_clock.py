"""Durations by arithmetic: seconds in, milliseconds out."""

from __future__ import annotations

import pytest

from lynx_sglang.loop.clock import StepClock


def test_the_first_step_counts_from_its_launch() -> None:
    assert StepClock().end(10.5, 10.0, is_after_idle=True, streams=["a"]) == (500.0, 500.0)


def test_a_step_counts_from_the_previous_end_and_a_gap_holds_the_prefill() -> None:
    clock = StepClock()
    clock.end(1.0, 0.9, is_after_idle=True, streams=["a"])
    assert clock.end(1.3, 1.1, is_after_idle=False, streams=[]) == pytest.approx((300, 300))
    assert clock.end(1.4, 1.35, is_after_idle=False, streams=["a", "b"]) == pytest.approx(
        (100, 400)
    )


def test_new_streams_have_no_gap_yet() -> None:
    clock = StepClock()
    clock.end(1.0, 0.9, is_after_idle=True, streams=["a"])
    clock.end(1.5, 1.1, is_after_idle=False, streams=[])
    assert clock.end(1.6, 1.5, is_after_idle=False, streams=["b"]) == pytest.approx((100, 100))


def test_idle_time_is_no_gap() -> None:
    clock = StepClock()
    clock.end(1.0, 0.9, is_after_idle=True, streams=["a"])
    assert clock.end(9.0, 8.9, is_after_idle=True, streams=["a"]) == pytest.approx((100, 100))
