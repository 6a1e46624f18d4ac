"""TTFT of queued requests as a limit on the step time: a place is free when a stream ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

PATIENCE: Final = 0.35  # share of the TTFT that may pass before steps get faster
RELIEF: Final = 0.98  # per step, decay of a wait that falls


@dataclass(slots=True)
class QueuePressure:
    """limit = full * PATIENCE * TTFT / wait: as far beyond its share as the wait, so much faster.

    wait is the oldest request's, up at once, down slowly. It settles where requests leave as fast
    as they come: below the TTFT wherever a speed-up of 1 / PATIENCE or less is enough for that and
    the least share yields it. The law needs no integral term: the queue itself integrates.
    """

    wait_ms: float = 0.0

    def watch(self, queue_ms: float | None) -> None:
        """Of a decode step, at whose end a free place would have been taken. None: unknown."""
        if queue_ms is not None and 0.0 <= queue_ms < math.inf:
            self.wait_ms = max(float(queue_ms), RELIEF * self.wait_ms)

    def limit_ms(self, ttft_ms: float | None, full_ms: float) -> float:
        """Limit on the step time; inf while the queue can wait. full_ms: a step at full quality."""
        if ttft_ms is None or self.wait_ms <= PATIENCE * ttft_ms:
            return math.inf
        return full_ms * PATIENCE * ttft_ms / self.wait_ms
