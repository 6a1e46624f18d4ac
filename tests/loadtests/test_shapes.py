"""Load shapes: what they spell, and that arrivals are Poisson and repeatable."""

from __future__ import annotations

from itertools import pairwise

import pytest

from loadtests.shapes import Plateau, Shape

STEP = Shape.parse("20x1,60x8,20x1")


def test_parse_and_spell() -> None:
    assert STEP.plateaus == (Plateau(20, 1), Plateau(60, 8), Plateau(20, 1))
    assert str(STEP) == "20x1,60x8,20x1"
    assert STEP.edges_s == [0, 20, 80, 100]
    assert STEP.duration_s == 100


@pytest.mark.parametrize("text", ["", "20", "20x", "x3", "20x1,", "0x3", "-1x3", "5x-1", "nanx1"])
def test_wrong_shape_names_its_part(text: str) -> None:
    with pytest.raises(ValueError, match="SECONDSxRATE"):
        Shape.parse(text)


def test_same_seed_same_arrivals() -> None:
    assert list(STEP.arrivals_s(7)) == list(STEP.arrivals_s(7))
    assert list(STEP.arrivals_s(7)) != list(STEP.arrivals_s(8))


def test_arrivals_keep_order_and_rate() -> None:
    arrivals_s = list(STEP.arrivals_s(0))
    assert arrivals_s == sorted(arrivals_s)
    high = [at_s for at_s in arrivals_s if 20 <= at_s < 80]
    assert abs(len(high) - 480) < 4 * 480**0.5  # four standard deviations of a Poisson count
    gaps_s = [later - earlier for earlier, later in pairwise(high)]
    mean = sum(gaps_s) / len(gaps_s)
    deviation = (sum((gap - mean) ** 2 for gap in gaps_s) / len(gaps_s)) ** 0.5
    assert 0.8 < deviation / mean < 1.2  # exponential gaps; a metronome has 0


def test_silence_is_a_plateau() -> None:
    assert [at_s for at_s in Shape.parse("5x0,5x10").arrivals_s(0) if at_s < 5] == []
