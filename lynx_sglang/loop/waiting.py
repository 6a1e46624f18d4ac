"""Queued requests: those that wait for a place among the running ones."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queue when a batch is about to run: requests that it had no place for."""

    requests: int
    oldest_ms: float  # queueing time of the oldest; 0 if none waits

    @classmethod
    def of(cls, scheduler: Any) -> Waiting:
        queue = scheduler.waiting_queue
        if not queue:
            return cls(0, 0.0)
        since_s = min(request.time_stats.wait_queue_entry_time for request in queue)
        return cls(len(queue), max(0.0, time.perf_counter() - since_s) * 1e3)  # SGLang's clock
