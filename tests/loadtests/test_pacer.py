"""The pacer against a clock of its own: no real sleeps."""

from __future__ import annotations

import pytest

from loadtests.pacer import Pacer


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        assert wait_s > 0
        self.now_s += wait_s


def test_every_arrival_leaves_when_due() -> None:
    clock = Clock()
    left: list[tuple[int, float, float]] = []
    pacer = Pacer([0.5, 0.5, 2.0], clock=clock, sleep=clock.sleep)
    pacer.run(lambda index, due_s: left.append((index, due_s, clock.now_s - 100)))
    assert left == [(0, 0.5, 0.5), (1, 0.5, 0.5), (2, 2.0, 2.0)]
    assert pacer.punctuality().is_kept


def test_a_slow_client_does_not_move_the_plan_and_is_told() -> None:
    clock = Clock()

    def start(index: int, due_s: float) -> None:
        clock.now_s += 0.1 if index < 5 else 0.0  # each start costs 100 ms, twice the spacing

    pacer = Pacer([0.05 * step for step in range(20)], clock=clock, sleep=clock.sleep)
    pacer.run(start)
    punctuality = pacer.punctuality()
    assert punctuality.arrivals == 20
    assert punctuality.lateness_max_ms == pytest.approx(250)  # the sixth: 500 - 250 ms
    assert not punctuality.is_kept
    assert "DID NOT KEEP UP" in str(punctuality)
    assert clock.now_s == pytest.approx(100.95)  # the last arrival left on time


def test_nothing_to_send() -> None:
    pacer = Pacer([])
    pacer.run(lambda index, due_s: None)
    assert pacer.punctuality().is_kept
