"""The cost of prefill steps: recovered from noisy steps, never falling in the tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_controller.learn.prefill import PrefillCost


def learned(
    number: int, fixed: float = 8.0, token: float = 0.05, pair: float = 2e-5, noise: float = 0.05
) -> PrefillCost:
    rng, cost = np.random.default_rng(3), PrefillCost()
    for _ in range(number):
        tokens, prefix = int(rng.integers(20, 2000)), int(rng.integers(0, 8000))
        ms = fixed + tokens * (token + pair * prefix)
        cost.learn(tokens, prefix, ms * (1.0 + noise * rng.standard_normal()))
    return cost


def test_the_terms_are_recovered() -> None:
    cost = learned(200)
    for tokens, prefix in ((64, 0), (512, 0), (512, 4000), (2000, 8000)):
        true = 8.0 + tokens * (0.05 + 2e-5 * prefix)
        assert cost.ms(tokens, prefix) == pytest.approx(true, rel=0.08)


def test_tokens_in_is_the_inverse() -> None:
    cost = learned(100)
    assert cost.ms(cost.tokens_in(40.0, 500), 500) == pytest.approx(40.0)
    assert cost.tokens_in(1.0, 0) == 0.0
    assert PrefillCost().tokens_in(1.0, 0) == math.inf


def test_it_follows_a_change() -> None:
    cost = learned(100)
    for _ in range(200):
        cost.learn(500, 0, 99.0)
    assert cost.ms(500, 0) == pytest.approx(99.0, rel=0.05)


def test_one_slow_step_is_not_believed() -> None:
    cost = learned(50)
    before = cost.ms(500, 0)
    cost.learn(500, 0, 60_000.0)
    assert cost.ms(500, 0) == before


@given(st.lists(st.tuples(st.integers(-5, 5000), st.integers(-5, 50_000), st.floats())))
def test_any_steps_leave_a_cost_that_rises_with_tokens(
    steps: list[tuple[int, int, float]],
) -> None:
    cost = PrefillCost()
    for step in steps:
        cost.learn(*step)
    times = [cost.ms(tokens, 100) for tokens in (1, 100, 10_000)]
    assert all(math.isfinite(ms) and ms >= 0.0 for ms in times)
    assert times == sorted(times)
