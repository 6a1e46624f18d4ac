"""Forecast of the next step's time at any share of its uncapped active experts."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Forecast:
    """ms(share) = base + slope * active(share). Active experts are summed over the layers."""

    base_ms: float
    slope_ms: float  # per expert and layer
    uncapped: float  # active experts without a cap
    exact: float = 0.0  # of them, those of exact rows: the share is of the others
    min_active: float = 0.0  # the rows' floors, and top-k
    max_active: float = math.inf  # an operator's cap

    def active(self, share: float) -> float:
        wanted = self.exact + share * (self.uncapped - self.exact)
        return min(max(wanted, min(self.min_active, self.uncapped)), self.max_active)

    def ms(self, share: float) -> float:
        return self.base_ms + self.slope_ms * self.active(share)

    def share_for(self, ms: float) -> float:
        """The largest share whose step fits ms; 0 where none does."""
        active = (ms - self.base_ms) / self.slope_ms
        if active >= self.active(1.0):
            return 1.0
        if active < self.active(0.0):
            return 0.0
        return (active - self.exact) / (self.uncapped - self.exact)
