"""The last decode gaps, stored so that they can be re-read at another operating point."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

STEADY: Final = 4  # gaps in a row that lost time outside, until it counts as lasting


@dataclass(frozen=True, slots=True)
class Window:
    """Immutable; oldest first."""

    noise: tuple[float, ...]  # relative residual of the step's own time
    outside_ms: tuple[float, ...]  # lost outside the step
    gaps_ms: tuple[float, ...] = ()  # as measured, for telemetry

    @classmethod
    def prior(cls, window_steps: int, sigma: float) -> Window:
        """A window of quantiles of the assumed noise: the prior leaves as samples arrive."""
        normal = NormalDist(0.0, sigma)
        # 37 is prime to any window a power of two: every stretch of the prior looks alike.
        order = [(37 * i) % window_steps for i in range(window_steps)]
        noise = tuple(normal.inv_cdf((i + 0.5) / window_steps) for i in order)
        return cls(noise, (0.0,) * window_steps)

    def push(self, noise: float, outside_ms: float, gap_ms: float) -> Window:
        size = len(self.noise)
        return Window(
            (*self.noise[1:], noise),
            (*self.outside_ms[1:], outside_ms),
            (*self.gaps_ms[-size + 1 :], gap_ms),
        )

    def gap_ms(self, percentile: float) -> float | None:
        """The windowed percentile as a stream saw it; None before the first gap."""
        return quantile(sorted(self.gaps_ms), percentile) if self.gaps_ms else None

    def tail_ms(
        self, percentile: float | None, own_ms: float, payable_ms: float
    ) -> tuple[float, int]:
        """Percentile of (gap - own) if every step had cost own_ms, and how many gaps it ignores.

        None: their mean.

        What the last STEADY gaps all lost outside the experts is counted in every gap: a lasting
        loss is known after a few steps, not once it has filled the window.

        Gaps that lost more than payable_ms outside count with their step alone: they would miss
        the SLO at the least share too, so they call for no cut.
        """
        steady_ms = min(self.outside_ms[-STEADY:])
        outside_ms = [each if each > steady_ms else steady_ms for each in self.outside_ms]
        ignored = len([each for each in outside_ms if each > payable_ms])
        gaps = [
            noise * own_ms + lost_ms if lost_ms <= payable_ms else noise * own_ms
            for noise, lost_ms in zip(self.noise, outside_ms, strict=True)
        ]
        if percentile is None:
            return sum(gaps) / len(gaps), ignored
        gaps.sort()
        return quantile(gaps, percentile), ignored


def quantile(ordered: list[float], percentile: float) -> float:
    """Linear interpolation between order statistics, as numpy's default."""
    place = (len(ordered) - 1) * percentile / 100.0
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
