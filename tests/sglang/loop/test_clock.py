"""Durations by arithmetic: seconds in, milliseconds out."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lynx_sglang.integration.scheduler import Pauses
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


def test_a_pause_is_neither_step_nor_gap() -> None:
    clock = StepClock()
    clock.end(1.0, 0.9, is_after_idle=True, streams=["a"])
    clock.note_pause(1.05, 61.0)
    assert clock.end(61.1, 61.0, is_after_idle=False, streams=["a"]) == pytest.approx((150, 150))
    assert clock.end(61.2, 61.1, is_after_idle=False, streams=["a"]) == pytest.approx((100, 100))


def test_a_step_that_was_in_flight_when_the_pause_came_keeps_its_own_time() -> None:
    clock = StepClock()
    clock.end(1.0, 0.9, is_after_idle=True, streams=["a"])
    clock.note_pause(1.2, 9.2)
    assert clock.end(9.3, 1.1, is_after_idle=False, streams=["a"]) == pytest.approx((300, 300))


def test_the_end_of_a_pause_is_told_with_its_start() -> None:
    noted: list[tuple[float, float]] = []
    runtime = SimpleNamespace(note_pause=lambda *times: noted.append(times))
    pauses = Pauses(cast(Any, SimpleNamespace(runtime=runtime)))
    called: list[str] = []

    def original(_scheduler: None, request: str) -> None:
        called.append(request)

    before = time.monotonic()
    pauses.pause_generation(original, None, "pause")
    first_s = time.monotonic()
    pauses.pause_generation(original, None, "again")  # it has begun
    pauses.continue_generation(original, None, "continue")
    pauses.continue_generation(original, None, "again")  # it was not paused
    ((start_s, end_s),) = noted
    assert before <= start_s <= first_s <= end_s <= time.monotonic()
    assert called == ["pause", "again", "continue", "again"]
