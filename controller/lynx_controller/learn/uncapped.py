"""Uncapped active experts of a batch, learned per size class and split over the layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from lynx_controller.types import Key

PerLayer: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

MEMORY: Final = 30  # samples that a size class remembers
LAYER_GAIN: Final = 0.05  # per step, of each layer's share; the first ones count for more
SPREAD: Final = 0.06  # relative standard deviation of a layer's number; 4-8 % at uniform routing


def above(mean: PerLayer, caps: PerLayer) -> PerLayer:
    """[L] normal mean above the caps: mean + SPREAD * mean * phi(z) / Q(z), z = caps' score.

    1 / Q is taken from the logistic curve nearest to the normal one, for z of up to 1.
    """
    z = np.minimum((caps / mean - 1.0) / SPREAD, 1.0)
    ratio: PerLayer = 0.3989 * np.exp(-0.5 * z * z) * (1.0 + np.exp(1.702 * z))
    return mean * (1.0 + SPREAD * ratio)


@dataclass(slots=True)
class ClassActive:
    """Over the active experts of uniform routing: ratios."""

    rows: int  # of the first batch
    uncapped: float
    min_active: float = 0.0  # held by the rows' floors, whatever the cap
    samples: float = 0.0  # sum over steps of the share of layers below their caps


@dataclass(slots=True)
class UncappedActive:
    """N = uncapped(size class) * L * E * (1 - (1 - k/E)^rows), uncapped = 1 for uniform routing.

    A layer below its cap shows its part of N; one at its cap only bounds it from below, so the
    expectation above the cap takes its place: expectation-maximisation of a censored mean. So
    the few layers that happen to stay below a cap do not mislead, and a stale estimate recovers.
    """

    num_layers: int
    num_experts: int
    top_k: int
    prior: float
    classes: dict[Key, ClassActive] = field(default_factory=dict)
    layer_share: PerLayer = field(init=False)
    samples: float = 0.0  # of layer_share

    def __post_init__(self) -> None:
        self.layer_share = np.full(self.num_layers, 1.0 / self.num_layers)

    def uniform(self, rows: float) -> float:
        """Active experts over all layers if routing were uniform."""
        share = self.top_k / self.num_experts
        return self.num_layers * self.num_experts * (1.0 - math.pow(1.0 - share, rows))

    def total(self, key: Key, rows: int) -> float:
        """Over all layers."""
        return self._class(key, rows).uncapped * self.uniform(rows)

    def min_active(self, key: Key, rows: int) -> float:
        """Over all layers under the lowest caps: held by floors, at least top-k."""
        return max(
            self._class(key, rows).min_active * self.uniform(rows), self.num_layers * self.top_k
        )

    def per_layer(self, total: float) -> PerLayer:
        return np.minimum(self.layer_share * total, self.num_experts)

    def learn(self, key: Key, rows: int, active: PerLayer, caps: PerLayer | None) -> None:
        """Take a step: active experts and caps [L]; None: not caps alone cut it."""
        own, uniform = self._class(key, rows), self.uniform(rows)
        active = np.maximum(active, 1.0)
        expected = self.layer_share * (own.uncapped * uniform)
        if caps is None:
            seen, weight = np.maximum(active, expected), 0.0
        elif float(caps.min()) >= self.num_experts:
            seen, weight = active, 1.0
        else:
            is_bound = (active >= caps) & (caps < self.num_experts)
            seen = np.where(is_bound, np.maximum(active, above(expected, caps)), active)
            weight = 1.0 - np.count_nonzero(is_bound) / self.num_layers
            is_held = active > caps
            if own.min_active or is_held.any():
                held = np.minimum(self.layer_share * (own.min_active * uniform), caps)
                held = np.where(is_held, active, held)
                own.min_active += LAYER_GAIN * (float(held.sum()) / uniform - own.min_active)
        total = float(seen.sum())
        own.uncapped += (min(total / uniform, 2.0) - own.uncapped) / (1.0 + own.samples)
        own.samples = min(own.samples + weight, MEMORY - 1.0)
        gain = max(LAYER_GAIN, 1.0 / (1.0 + self.samples))
        self.layer_share += gain * (seen / total - self.layer_share)
        self.samples += weight

    def _class(self, key: Key, rows: int) -> ClassActive:
        """A new one starts from the one nearest in rows."""
        known = self.classes.get(key)
        if known is None:
            near = min(
                self.classes.values(),
                key=lambda each: abs(math.log(each.rows / rows)),
                default=None,
            )
            if near is None:
                known = ClassActive(rows, self.prior if rows > 1 else 1.0)
            else:
                known = ClassActive(rows, near.uncapped, near.min_active)
            self.classes[key] = known
        return known
