"""A replica's connection to the store, on a thread of its own.

    statistics/MODEL/REPLICA   block and sufficient statistics that a replica has shipped
    cost/MODEL/BLOCK           step cost of the block's replicas, from the last refit

The step path only calls `Exchange.offer` and `Exchange.cost`, which neither wait nor raise.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from dataclasses import dataclass
from typing import Final

from lynx_controller.fleet.statistics import StepStatistics
from lynx_controller.fleet.store import Store, StoreError
from lynx_controller.learn.cost import StepCost

logger = logging.getLogger(__name__)

WAITING: Final = 16  # statistics that wait for the thread; more are dropped and counted
STATISTICS: Final = "statistics"
COST: Final = "cost"


@dataclass(frozen=True, slots=True)
class Identity:
    """Replicas of one identity are comparable. Names hold no "/", the separator of keys."""

    model: str
    name: str  # of the replica
    block: str  # hardware, parallel layout, quantisation

    @classmethod
    def of(cls, model: str, name: str, block: str) -> Identity:
        """With "/" in names replaced by "-"."""
        return cls(*(each.strip("/").replace("/", "-") for each in (model, name, block)))

    @property
    def statistics_key(self) -> str:
        return f"{STATISTICS}/{self.model}/{self.name}"

    @property
    def cost_key(self) -> str:
        return f"{COST}/{self.model}/{self.block}"


class Exchange:
    """Ships statistics and fetches the block's cost. `failures`, `dropped`: for telemetry."""

    def __init__(
        self, store: Store, identity: Identity, interval_s: float = 10.0, keep: float = 0.9
    ) -> None:
        """`keep`: weight of older statistics that each shipment leaves."""
        self.failures = self.dropped = 0
        self._store, self._identity = store, identity
        self._interval_s, self._keep = interval_s, keep
        self._offered: queue.Queue[StepStatistics] = queue.Queue(WAITING)
        self._cost: StepCost | None = None
        self._total: StepStatistics | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lynx-fleet", daemon=True)
        self._thread.start()

    def offer(self, statistics: StepStatistics) -> None:
        """Step path: hand over statistics to be shipped."""
        try:
            self._offered.put_nowait(statistics)
        except queue.Full:
            self.dropped += 1

    def cost(self) -> StepCost | None:
        """Step path: the block's cost if it arrived since the last call."""
        cost, self._cost = self._cost, None
        return cost

    def close(self, timeout_s: float = 5.0) -> None:
        """Ship the rest, if the store lets it."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        known, interval_s = "", 0.0
        while True:
            is_last = self._stop.wait(interval_s)
            interval_s = self._interval_s
            try:
                self._ship()
                known = self._fetch(known)
            except (StoreError, ValueError, LookupError, TypeError) as error:  # lost, or nonsense
                self.failures += 1
                if self.failures == 1:
                    logger.warning("the store fails, and is tried again: %s", error)
            if is_last:
                return

    def _ship(self) -> None:
        fresh: StepStatistics | None = None
        while not self._offered.empty():
            each = self._offered.get_nowait()
            fresh = each if fresh is None else fresh.merged(each)
        if fresh is None:
            return
        self._total = fresh if self._total is None else self._total.merged(fresh, self._keep)
        record = {"block": self._identity.block, "statistics": self._total.to_dict()}
        self._store.put(self._identity.statistics_key, json.dumps(record))

    def _fetch(self, known: str) -> str:
        """Take the block's cost unless its text is `known`; the text."""
        key = self._identity.cost_key
        text = self._store.find(key).get(key, known)
        if text != known:
            self._cost = StepCost(**json.loads(text))
        return text
