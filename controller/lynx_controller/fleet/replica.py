"""A replica of a fleet: ships statistics of its steps, starts from the cost of like replicas.

Whole decode steps are the samples. `note` is on the step path: it neither waits nor raises.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Final

from lynx_controller.controller import Controller
from lynx_controller.fleet.exchange import Exchange, Identity
from lynx_controller.fleet.statistics import StepStatistics
from lynx_controller.fleet.store import Store
from lynx_controller.types import Observation, Phase

OFFER_STEPS: Final = 128
WARMUP_STEPS: Final = 2  # first steps of a size class: no samples
LOUD: Final = 2.0  # times a class's usual step: a disturbance, no sample
USUAL_GAIN: Final = 0.05  # per step, of the usual time of a class; it falls at once


class Replica:
    def __init__(self, store: Store, identity: Identity, interval_s: float = 10.0) -> None:
        self.has_inherited = False
        self._exchange = Exchange(store, identity, interval_s)
        self._samples: list[tuple[float, float, float]] = []  # sum of T, rows, ms
        self._steps = 0
        self._usual: dict[int, tuple[int, float]] = {}  # by size class: steps, usual ms

    def note(self, seen: Observation, controller: Controller) -> None:
        """Take a finished step; hand the controller the block's cost once it arrives."""
        if not self.has_inherited and (cost := self._exchange.cost()) is not None:
            controller.inherit(*astuple(cost))
            self.has_inherited = True
        batch = seen.batch
        if batch.phase is not Phase.DECODE or not self._is_usual(batch.size_class, seen.step_ms):
            return
        self._samples.append((float(sum(seen.active_experts)), float(batch.rows), seen.step_ms))
        self._steps += 1
        if len(self._samples) == OFFER_STEPS:
            self._offer()

    @property
    def failures(self) -> int:
        """Attempts to reach the store that failed."""
        return self._exchange.failures

    def state(self) -> dict[str, float]:
        """For telemetry."""
        return {
            "steps": self._steps,
            "failures": self._exchange.failures,
            "dropped": self._exchange.dropped,
            "has_inherited": self.has_inherited,
        }

    def close(self, timeout_s: float = 5.0) -> None:
        """Ship the rest, if the store lets it."""
        self._offer()
        self._exchange.close(timeout_s)

    def _offer(self) -> None:
        if self._samples:
            self._exchange.offer(StepStatistics.of(self._samples))
        self._samples = []

    def _is_usual(self, size_class: int, step_ms: float) -> bool:
        steps, usual_ms = self._usual.get(size_class, (0, step_ms))
        is_usual = steps >= WARMUP_STEPS and step_ms < LOUD * usual_ms
        if steps < WARMUP_STEPS or step_ms < usual_ms:
            usual_ms = step_ms
        else:
            usual_ms += USUAL_GAIN * (min(step_ms, LOUD * usual_ms) - usual_ms)
        self._usual[size_class] = steps + 1, usual_ms
        return is_usual
