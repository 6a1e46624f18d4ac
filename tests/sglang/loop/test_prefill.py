"""Pacing sets the scheduler's numbers and gives them back; advice touches nothing."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from lynx_controller import Bounds, Pace
from lynx_controller.decide.pacing import Rule
from lynx_sglang.errors import LynxError
from lynx_sglang.loop.prefill import Pacing, Prefill, bounds_of

OWN = Pace(512, 0, Rule.CREDIT)


def scheduler(**changes: Any) -> SimpleNamespace:
    values = {
        "chunked_prefill_size": 512,
        "prefill_decode_interval": 2,
        "prefill_decode_interval_min_bs": 0,
        "_prefill_decode_interval_remaining": 0,
        "page_size": 1,
        "truncation_align_size": None,
        "chunked_req": None,
        "waiting_queue": [],
    }
    return SimpleNamespace(**(values | changes))


def numbers(made: SimpleNamespace) -> tuple[int, int, int]:
    return (
        made.chunked_prefill_size,
        made.prefill_decode_interval,
        made._prefill_decode_interval_remaining,
    )


def test_a_prefill_steps_tokens_and_their_prefix() -> None:
    batch = SimpleNamespace(prefix_lens=[0, 300], extend_lens=[100, 100])
    assert Prefill.of(batch) == Prefill(tokens=200, prefix=200, end=400)


def test_a_pace_is_put_in_force_and_given_back() -> None:
    made = scheduler()
    pacing = Pacing(made, is_on=True)
    assert made.prefill_decode_interval_min_bs == 1  # without decode rows nothing waits
    pacing.put_in_force(OWN)
    assert numbers(made) == (512, 2, 0)
    pacing.put_in_force(Pace(96, 1, Rule.FIT))
    assert numbers(made) == (96, 2, 0)  # an operator's longer interval stays
    pacing.put_in_force(Pace(512, 30, Rule.WAIT))
    assert numbers(made) == (512, 30, 30)
    pacing.put_in_force(OWN)
    assert numbers(made) == (512, 2, 0)
    made._prefill_decode_interval_remaining = 2  # the scheduler's own doing
    pacing.put_in_force(OWN)
    assert numbers(made) == (512, 2, 2)


def test_advice_changes_nothing() -> None:
    made, untouched = scheduler(), scheduler()
    pacing = Pacing(made, is_on=False)
    for pace in (Pace(96, 1, Rule.FIT), Pace(512, 30, Rule.WAIT), OWN):
        pacing.put_in_force(pace)
    assert made == untouched


def test_the_prefix_is_that_of_a_prompt_that_is_not_done() -> None:
    made = scheduler()
    pacing, last = Pacing(made, is_on=True), Prefill(100, 50, 400)
    assert (pacing.prefix(None), pacing.prefix(last)) == (0, 0)
    made.chunked_req = object()
    assert pacing.prefix(last) == 400


def test_a_prompt_that_is_partly_prefilled_still_waits() -> None:
    def since(waited_s: float) -> SimpleNamespace:
        entry = time.perf_counter() - waited_s
        return SimpleNamespace(time_stats=SimpleNamespace(wait_queue_entry_time=entry))

    made = scheduler()
    pacing = Pacing(made, is_on=True)
    assert pacing.wait_ms() == 0.0
    made.waiting_queue = [since(1.0)]
    made.chunked_req = since(3.0)
    assert pacing.wait_ms() == pytest.approx(3000.0, abs=200.0)


def test_chunks_are_whole_pages() -> None:
    assert bounds_of(scheduler()) == Bounds(32, 512, 1)
    assert bounds_of(scheduler(page_size=48, truncation_align_size=32)) == Bounds(96, 480, 96)
    assert bounds_of(scheduler(chunked_prefill_size=16)) == Bounds(16, 16, 1)
    with pytest.raises(LynxError, match="at least 1024 tokens, got --chunked-prefill-size 512"):
        bounds_of(scheduler(page_size=1024))
    with pytest.raises(LynxError, match="prefills prompts whole"):
        bounds_of(scheduler(chunked_prefill_size=None))
