"""A replica in its fleet: ships what its steps cost, starts from what others' did.

    ms = base + slope * sum of T + row * rows        z = (1, sum of T, rows): the controller's law

Whole decode steps are one site. All of it is on the step path, so nothing here waits or raises.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lynx_controller.controller import Controller
from lynx_controller.fleet.exchange import Exchange, Replica
from lynx_controller.fleet.site import Recorder, Sites
from lynx_controller.fleet.store import Store
from lynx_controller.types import Observation, Phase

SITES: Final = ("step",)
PROBE_ROWS: Final = (1, 4, 16, 64)
PROBE_SHARES: Final = (0.5, 1.0)  # of what uniform routing reads
OFFER_STEPS: Final = 128
WARMUP: Final = 2  # steps of a size class that say nothing of it
LOUD: Final = 2.0  # times a size class's usual step: a disturbance


def replica(
    model: str, name: str, block: str, num_layers: int, num_experts: int, k: int
) -> Replica:
    """Who ships, with the probe that suits the model's size; "/" in names becomes "-"."""
    probe = tuple(
        (1.0, share * num_layers * num_experts * (1.0 - (1.0 - k / num_experts) ** rows), rows)
        for rows in PROBE_ROWS
        for share in PROBE_SHARES
    )
    return Replica(model.strip("/").replace("/", "-"), name.replace("/", "-"), block, SITES, probe)


class Member:
    def __init__(self, store: Store, who: Replica, interval_s: float = 10.0) -> None:
        self._exchange = Exchange(store, who, interval_s)
        self._recorder = Recorder(num_features=3, num_sites=1)
        self._steps = 0
        self._seen: dict[int, tuple[int, float]] = {}  # by size class: steps, usual ms
        self.has_inherited = False
        self.refused = 0  # laws that no plant could have

    def note(self, seen: Observation, controller: Controller) -> None:
        """Take a finished step; hand the controller a law that has come, once."""
        if not self.has_inherited and (law := self._exchange.law()) is not None:
            self._inherit(law, controller)
        if seen.batch.phase is not Phase.DECODE or not self._is_usual(
            seen.batch.size_class, seen.step_ms
        ):
            return
        z = np.array([[1.0], [float(sum(seen.active_experts))], [float(seen.batch.rows)]])
        self._recorder.add(z, np.array([1e3 * seen.step_ms]))
        self._steps += 1
        if self._steps % OFFER_STEPS == 0:
            self._exchange.offer(self._recorder.take())

    def state(self) -> dict[str, float]:
        """For telemetry."""
        return {
            "steps": self._steps,
            "failures": self._exchange.failures,
            "dropped": self._exchange.dropped,
            "refused": self.refused,
            "has_inherited": self.has_inherited,
        }

    def close(self, timeout_s: float = 5.0) -> None:
        """Ship what is left, if the store lets it."""
        self._exchange.offer(self._recorder.take())
        self._exchange.close(timeout_s)

    def _inherit(self, law: Sites, controller: Controller) -> None:
        try:
            controller.inherit(*terms(law))
            self.has_inherited = True
        except ValueError:  # anything may be in a store
            self.refused += 1

    def _is_usual(self, size_class: int, step_ms: float) -> bool:
        steps, usual_ms = self._seen.get(size_class, (0, step_ms))
        is_usual = steps >= WARMUP and step_ms < LOUD * usual_ms
        if steps < WARMUP or step_ms < usual_ms:
            usual_ms = step_ms
        else:
            usual_ms += 0.05 * (min(step_ms, LOUD * usual_ms) - usual_ms)
        self._seen[size_class] = steps + 1, usual_ms
        return is_usual


def terms(law: Sites) -> tuple[float, float, float]:
    """base, row and slope in ms; a fleet may know a term too little to tell its sign."""
    base, slope, row = (1e-3 * float(each) for each in law.mean[:, 0])
    return max(base, 0.0), max(row, 0.0), max(slope, 1e-9)
