"""Reads a server's Lynx state twice a second while a load runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any

INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading. The sums run since the server's start, over its decode steps."""

    at: float  # epoch seconds
    share: float  # of the experts that steps would use, those that they may use
    demand: float
    budget: float  # mean over layers
    num_experts: int
    reason: str
    decode_steps: int
    active_experts_sum: float
    retained_mass_sum: float

    @classmethod
    def of(cls, state: dict[str, Any], at: float) -> Sample:
        decision = state["decision"]
        return cls(
            at=at,
            share=decision["share"],
            demand=decision["demand"],
            budget=sum(decision["budget"]) / len(decision["budget"]),
            num_experts=state["num_experts"],
            reason=decision["reason"],
            decode_steps=state["decode_steps"],
            active_experts_sum=state["active_experts_sum"],
            retained_mass_sum=state["retained_mass_sum"],
        )

    @property
    def is_full(self) -> bool:
        """Nothing is cut: whole demand, and no cap below the number of experts."""
        return self.demand >= 1.0 and self.budget >= self.num_experts


@dataclass(frozen=True, slots=True)
class Means:
    """Means over the decode steps between two readings."""

    at: float  # middle
    active_experts: float
    retained_mass: float


def means(earlier: Sample, later: Sample) -> Means | None:
    """None without a decode step in between."""
    steps = later.decode_steps - earlier.decode_steps
    if steps <= 0:
        return None
    return Means(
        at=(earlier.at + later.at) / 2,
        active_experts=(later.active_experts_sum - earlier.active_experts_sum) / steps,
        retained_mass=(later.retained_mass_sum - earlier.retained_mass_sum) / steps,
    )


def course(samples: Sequence[Sample]) -> list[Means]:
    """The means from each reading to the next."""
    return [each for pair in pairwise(samples) if (each := means(*pair)) is not None]


def recovery_s(samples: Sequence[Sample], fell_at: float) -> float | None:
    """From the fall of the load to the first reading at full quality; None if there was none."""
    for sample in samples:
        if sample.at >= fell_at and sample.is_full:
            return sample.at - fell_at
    return None


class Monitor:
    """Samples in a thread of its own for as long as its ``with`` block lasts."""

    def __init__(self, read: Callable[[], dict[str, Any] | None]) -> None:
        self.samples: list[Sample] = []
        self._read = read
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Monitor:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if error is None:
            self._sample()

    def _run(self) -> None:
        while not self._is_over.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        state = self._read()
        # A plain server has no Lynx state, but is asked as often: the load is the same.
        if state is not None and state["decision"] is not None:
            self.samples.append(Sample.of(state, time.time()))
