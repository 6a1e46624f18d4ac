"""What the next step would cost at any share of the experts that it would use."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Forecast:
    """ms(share) = base + slope * active(share). Active experts are over all layers."""

    base_ms: float
    slope_ms: float
    uncapped: float  # with nothing cut
    exact: float = 0.0  # those of them that exact rows hold: the share is of the others
    least: float = 0.0  # what floors hold, and top-k
    most: float = math.inf  # what an operator's cap allows

    def active(self, share: float) -> float:
        wanted = self.exact + share * (self.uncapped - self.exact)
        return min(max(wanted, min(self.least, self.uncapped)), self.most)

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
