"""The waiting requests of the scheduler's queue, in SGLang's own records."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from sglang.srt.observability.req_time_stats import SchedulerReqTimeStats

from lynx_sglang.loop.waiting import Waiting


def waits(*seconds: float) -> SimpleNamespace:
    queue = []
    for waited_s in seconds:
        stats = SchedulerReqTimeStats()
        stats.set_wait_queue_entry_time(time.perf_counter() - waited_s)
        queue.append(SimpleNamespace(time_stats=stats))
    return SimpleNamespace(waiting_queue=queue)


def test_the_oldest_counts_wherever_it_stands() -> None:
    waiting = Waiting.of(waits(0.1, 2.0, 0.5))
    assert waiting.requests == 3
    assert waiting.oldest_ms == pytest.approx(2000.0, abs=100.0)


def test_nobody_waits_no_time() -> None:
    assert Waiting.of(waits()) == Waiting(0, 0.0)
