"""Step cost of like replicas, fitted on their pooled sufficient statistics.

    ms = base + slope * sum of T + row * rows = z'w        z = (1, sum of T, rows)
    x  = z / ms, target 1: the noise is a share of the step, so the error is relative
    w  = (G + lambda I)^-1 m,   G = sum of x x',   m = sum of x,   in features scaled to rms 1

A replica ships G, m and the number of its steps, never the steps themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lynx_controller.learn.cost import LEAST_SLOPE_MS, StepCost

Array = NDArray[np.float64]

NUM_FEATURES: Final = 3
RIDGE: Final = 6.25e-4  # noise over prior variance: (5 %)^2 / 2^2, in units of a whole step


@dataclass(frozen=True, slots=True)
class StepStatistics:
    steps: float  # with decay
    gram: Array  # [3, 3] G
    moment: Array  # [3] m

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float, float]]) -> StepStatistics:
        """From (sum of T, rows, ms) per step; steps without a time > 0 do not count."""
        seen = [each for each in samples if 0.0 < each[2] < math.inf]
        active, rows, ms = np.array(seen, dtype=float).reshape(-1, 3).T
        x = np.stack([np.ones_like(ms), active, rows], axis=1) / ms[:, None]
        return cls(float(len(seen)), x.T @ x, x.sum(axis=0))

    def merged(self, later: StepStatistics, keep: float = 1.0) -> StepStatistics:
        """These, decayed to `keep`, and later ones."""
        return StepStatistics(
            keep * self.steps + later.steps,
            keep * self.gram + later.gram,
            keep * self.moment + later.moment,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "gram": self.gram.tolist(),
            "moment": self.moment.tolist(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> StepStatistics:
        """Raises ValueError, TypeError or KeyError for anything but finite sums of 3 features."""
        steps = float(record["steps"])
        gram, moment = (np.array(record[name], dtype=float) for name in ("gram", "moment"))
        if gram.shape != (NUM_FEATURES, NUM_FEATURES) or moment.shape != (NUM_FEATURES,):
            raise ValueError(f"expected sums of {NUM_FEATURES} features, got shape {gram.shape}")
        if not (steps > 0.0 and np.isfinite(gram).all() and np.isfinite(moment).all()):
            raise ValueError(f"expected finite sums of some steps, got {steps} steps")
        return cls(steps, gram, moment)


def fit(parts: Sequence[StepStatistics]) -> StepCost:
    """Step cost of one or more replicas. A term too little known to have a sign is 0."""
    total = parts[0]
    for each in parts[1:]:
        total = total.merged(each)
    power = np.diag(total.gram) / total.steps
    scale = 1.0 / np.sqrt(np.where(power > 0.0, power, 1.0))
    gram = total.gram * np.outer(scale, scale) + RIDGE * np.eye(NUM_FEATURES)
    base, slope, row = (scale * np.linalg.solve(gram, total.moment * scale)).tolist()
    return StepCost(max(base, 0.0), max(row, 0.0), max(slope, LEAST_SLOPE_MS))
