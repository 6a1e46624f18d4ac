"""Replicas share what their steps cost: statistics go to a store, laws come back.

    share/MODEL/REPLICA   what a replica saw: block, labels of its sites, sufficient statistics
    law/MODEL/REPLICA     what the last refit made of it
    law/MODEL/=BLOCK      where a replica of that block starts that nobody has seen

The step path only calls `Exchange.offer` and `Exchange.law`, which neither wait nor raise: a thread
ships, decays and fetches. `refit` is a job of its own, for whoever runs one per fleet.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lynx_controller.fleet import groups
from lynx_controller.fleet.site import Sites, Statistics
from lynx_controller.fleet.store import Store, StoreError

logger = logging.getLogger(__name__)

WAITING: Final = 16  # statistics that may wait for the thread; more are dropped and counted


@dataclass(frozen=True, slots=True)
class Replica:
    """Who ships."""

    model: str  # replicas of the same model and features are comparable; no "/"
    name: str  # no "/"; must not start with "="
    block: str  # hardware, parallel layout, quantisation
    sites: tuple[str, ...]  # [S] labels: layers, or one where whole steps are timed
    probe: tuple[tuple[float, ...], ...]  # [q, d] loads whose times tell replicas apart

    def __post_init__(self) -> None:
        if "/" in self.model + self.name or self.name.startswith("="):
            raise ValueError(f'no "/" or leading "=" in model and name, got {self!r}')


class Exchange:
    """One replica's side. `failures` and `dropped` are for telemetry."""

    def __init__(
        self, store: Store, replica: Replica, interval_s: float = 10.0, keep: float = 0.9
    ) -> None:
        """`keep`: what is left of older statistics at each shipment."""
        self.replica = replica
        self.failures = self.dropped = 0
        self._store, self._interval_s, self._keep = store, interval_s, keep
        self._offered: queue.Queue[Statistics] = queue.Queue(WAITING)
        self._law: Sites | None = None
        self._total: Statistics | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lynx-fleet", daemon=True)
        self._thread.start()

    def offer(self, statistics: Statistics) -> None:
        """Step path: hand over what `Recorder.take` gave."""
        try:
            self._offered.put_nowait(statistics)
        except queue.Full:
            self.dropped += 1

    def law(self) -> Sites | None:
        """Step path: a law that came since the last call, its own or its block's."""
        law, self._law = self._law, None
        return law

    def close(self, timeout_s: float = 5.0) -> None:
        """Ship what is left, if the store lets it."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        known = ""
        while True:
            is_last = self._stop.wait(self._interval_s if known else 0.0)
            try:
                self._ship()
                known = self._fetch(known) or "none yet"
            except (StoreError, ValueError, LookupError, TypeError) as error:  # lost, or nonsense
                self.failures += 1
                if self.failures == 1:
                    logger.warning("the store fails, and is tried again: %s", error)
                known = known or "none yet"
            if is_last:
                return

    def _ship(self) -> None:
        fresh: Statistics | None = None
        while not self._offered.empty():
            each = self._offered.get_nowait()
            fresh = each if fresh is None else fresh.merged(each)
        if fresh is None:
            return
        self._total = fresh if self._total is None else self._total.merged(fresh, self._keep)
        replica = self.replica
        record = {
            "block": replica.block,
            "sites": replica.sites,
            "probe": replica.probe,
            "statistics": self._total.to_dict(),
        }
        self._store.put(f"share/{replica.model}/{replica.name}", json.dumps(record))

    def _fetch(self, known: str) -> str:
        """Take the replica's law if it has one, else its block's; the text it came from."""
        start = f"law/{self.replica.model}/"
        for key in (start + self.replica.name, start + "=" + self.replica.block):
            text = self._store.find(key).get(key)
            if text is not None:
                if text != known:
                    self._law = matched(json.loads(text), self.replica.sites)
                return text
        return known


def matched(record: dict[str, Any], sites: tuple[str, ...]) -> Sites:
    """The law of these sites; a block's has an entry, None, for sites that nobody has seen."""
    known = record["sites"]
    at = [known.index(each if each in known else None) for each in sites]  # ValueError: no entry
    whole = Sites.from_dict(record["law"])
    law = Sites(whole.mean[:, at], whole.covariance[:, :, at], whole.noise, whole.forgetting)
    law.open(whole.prior[:, :, at])
    return law


def refit(store: Store, model: str) -> groups.Fit | None:
    """Fit all replicas of a model from what they shipped, and leave every one its law.

    None where nobody has shipped yet. Raises StoreError, and ValueError for shares that don't fit
    together.
    """
    shares = {
        key.rsplit("/", 1)[1]: json.loads(text)
        for key, text in sorted(store.find(f"share/{model}/").items())
    }
    if not shares:
        return None
    replica = [name for name, share in shares.items() for _ in share["sites"]]
    label = [each for share in shares.values() for each in share["sites"]]
    block = [share["block"] for share in shares.values() for _ in share["sites"]]
    layout = groups.Layout.of(replica, label, block)
    parts = [Statistics.from_dict(share["statistics"]) for share in shares.values()]
    probe = np.array(next(iter(shares.values()))["probe"])
    fit = groups.fit(
        Statistics(
            np.concatenate([each.count for each in parts], axis=-1),
            np.concatenate([each.gram for each in parts], axis=-1),
            np.concatenate([each.moment for each in parts], axis=-1),
        ),
        layout,
        probe,
    )
    for name, share in shares.items():
        which = np.array([i for i, each in enumerate(replica) if each == name])
        record = {"sites": share["sites"], "law": fit.sites(which).to_dict()}
        store.put(f"law/{model}/{name}", json.dumps(record))
    labels = list(dict.fromkeys(label))
    for number, name in enumerate(dict.fromkeys(block)):
        law = fit.newcomer(number, [*range(len(labels)), None])
        record = {"sites": [*labels, None], "law": law.to_dict()}
        store.put(f"law/{model}/={name}", json.dumps(record))
    return fit
