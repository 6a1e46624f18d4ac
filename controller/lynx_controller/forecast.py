"""What the next step would cost at any demand: cost model and response at one batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .response import KNOTS, interpolate


@dataclass(frozen=True, slots=True)
class Forecast:
    """ms(demand) = base + slope * active(demand); monotone in demand, so it inverts."""

    base_ms: float
    slope_ms: float
    active_at: tuple[float, ...]  # [knots] active experts over all layers

    def active(self, demand: float) -> float:
        return interpolate(self.active_at, demand)

    def ms(self, demand: float) -> float:
        return self.base_ms + self.slope_ms * self.active(demand)

    def capped(self, active: float) -> Forecast:
        """The same under a cap on the active experts over all layers."""
        return replace(self, active_at=tuple(min(each, active) for each in self.active_at))

    def demand_for(self, ms: float) -> float:
        """The largest demand whose step fits ms; 0 where none does."""
        active = (ms - self.base_ms) / self.slope_ms
        return self.demand_of(active)

    def demand_of(self, active: float) -> float:
        """The largest demand that leaves at most this many experts active."""
        at = self.active_at
        if active >= at[-1]:
            return 1.0
        for i in range(len(KNOTS) - 1, 0, -1):
            if at[i - 1] <= active:
                rise = at[i] - at[i - 1]
                place = (active - at[i - 1]) / rise if rise > 0.0 else 0.0
                return KNOTS[i - 1] + place * (KNOTS[i] - KNOTS[i - 1])
        return 0.0
