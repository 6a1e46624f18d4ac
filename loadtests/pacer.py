"""The open-loop pacer: requests leave when they are due, whether or not earlier ones came back.

A closed loop waits for the server, so a slow server is asked less and its overload stays hidden.
Here only the client can delay an arrival; its lateness is measured and reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loadtests.percentile import percentile

LATE_MS = 50.0  # an arrival this much behind its time was not sent by the plan


@dataclass(frozen=True, slots=True)
class Punctuality:
    """The client's punctuality against its own plan."""

    arrivals: int
    late: int
    lateness_p95_ms: float
    lateness_max_ms: float

    @property
    def is_kept(self) -> bool:
        return self.late <= max(1, self.arrivals // 100)

    def __str__(self) -> str:
        verdict = "kept up" if self.is_kept else "DID NOT KEEP UP: the load was below the plan"
        return (
            f"client {verdict}: {self.late} of {self.arrivals} arrivals more than "
            f"{LATE_MS:g} ms late, p95 {self.lateness_p95_ms:.1f} ms, "
            f"max {self.lateness_max_ms:.1f} ms"
        )


class Pacer:
    """Starts one action per arrival time; ``start`` must return at once."""

    def __init__(
        self,
        arrivals_s: Iterable[float],
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._arrivals_s = arrivals_s
        self._clock = clock
        self._sleep = sleep
        self._lateness_ms: list[float] = []

    def run(self, start: Callable[[int, float], None]) -> None:
        """Call ``start(index, due_s)`` when each arrival is due."""
        origin_s = self._clock()
        for index, due_s in enumerate(self._arrivals_s):
            wait_s = due_s - (self._clock() - origin_s)
            if wait_s > 0:
                self._sleep(wait_s)
            self._lateness_ms.append(max(0.0, (self._clock() - origin_s - due_s) * 1e3))
            start(index, due_s)

    def punctuality(self) -> Punctuality:
        lateness = self._lateness_ms
        return Punctuality(
            arrivals=len(lateness),
            late=sum(each > LATE_MS for each in lateness),
            lateness_p95_ms=percentile(lateness, 95) if lateness else 0.0,
            lateness_max_ms=max(lateness, default=0.0),
        )
