"""How many experts a batch would use uncut, learned per slot and split over layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from .types import Key

PerLayer: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

MEMORY: Final = 30  # samples that a slot remembers
LAYER_GAIN: Final = 0.05  # per step, of each layer's share; the first ones count for more
DRIFT: Final = 1.1  # a layer at its cap would have used up to this times as many


@dataclass(slots=True)
class Slot:
    """Both over what uniform routing would use."""

    rows: int  # when it was made
    natural: float
    least: float = 0.0  # what floors hold, whatever the cap
    samples: int = 0


@dataclass(slots=True)
class Natural:
    """N = natural(slot) * L * E * (1 - (1 - k/E)^rows), the last factors being uniform routing.

    A layer below its cap tells its part of N; one at its cap, only that it is no less. For what it
    does not tell, the estimate stands: expectation-maximisation of a censored mean. DRIFT raises
    an estimate that caps come close to: those few layers that stay below one are a biased sample.
    """

    num_layers: int
    num_experts: int
    top_k: int
    prior: float
    slots: dict[Key, Slot] = field(default_factory=dict)
    layer_share: PerLayer = field(init=False)
    samples: int = 0  # of layer_share

    def __post_init__(self) -> None:
        self.layer_share = np.full(self.num_layers, 1.0 / self.num_layers)

    def uniform(self, rows: float) -> float:
        """Active experts over all layers if routing were uniform."""
        share = self.top_k / self.num_experts
        return self.num_layers * self.num_experts * (1.0 - math.pow(1.0 - share, rows))

    def total(self, key: Key, rows: int) -> float:
        """Over all layers."""
        return self._slot(key, rows).natural * self.uniform(rows)

    def least(self, key: Key, rows: int) -> float:
        """Over all layers, at a cap of nothing: what floors were seen to hold, at least top-k."""
        return max(self._slot(key, rows).least * self.uniform(rows), self.num_layers * self.top_k)

    def per_layer(self, total: float) -> PerLayer:
        return np.minimum(self.layer_share * total, self.num_experts)

    def learn(self, key: Key, rows: int, active: PerLayer, caps: PerLayer | None) -> None:
        """Take a step: active experts and caps [L]; None: something else than caps cut it."""
        slot, uniform = self._slot(key, rows), self.uniform(rows)
        expected = self.layer_share * (slot.natural * uniform)
        seen = np.maximum(active, expected)
        if caps is not None:
            is_bound = active >= np.minimum(caps, self.num_experts)
            is_bound &= caps < self.num_experts
            seen = np.where(is_bound, np.maximum(seen, DRIFT * caps), active)
            held = active > caps
            least = np.minimum(self.layer_share * (slot.least * uniform), caps)
            least = np.where(held, active, least)
            slot.least += LAYER_GAIN * (float(least.sum()) / uniform - slot.least)
        if np.array_equal(seen, expected):
            return
        total = float(seen.sum())
        slot.samples = min(slot.samples + 1, MEMORY)
        slot.natural += (min(total / uniform, 2.0) - slot.natural) / slot.samples
        self.samples += 1
        gain = max(LAYER_GAIN, 1.0 / self.samples)
        self.layer_share += gain * (seen / total - self.layer_share)

    def _slot(self, key: Key, rows: int) -> Slot:
        """A new one starts from the one nearest in rows."""
        known = self.slots.get(key)
        if known is None:
            near = min(
                self.slots.values(), key=lambda each: abs(math.log(each.rows / rows)), default=None
            )
            if near is None:
                known = Slot(rows, self.prior if rows > 1 else 1.0)
            else:
                known = Slot(rows, near.natural, near.least)
            self.slots[key] = known
        return known
