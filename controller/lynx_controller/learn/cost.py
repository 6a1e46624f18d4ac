"""Cost of a step, fitted online: ms = base(size class) + row_ms * rows + slope_ms * active."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from lynx_controller.config import ControllerConfig
from lynx_controller.types import Key

CLIP: Final = 3.0  # residuals beyond this many standard deviations are clipped
DRIFT: Final = 1.0  # CUSUM allowance, in standard deviations
ALARM: Final = 5.0  # CUSUM threshold, in standard deviations
REOPENED: Final = (
    0.25  # samples a size class is left with when its base shifts: the next one counts 4:1
)
SETTLED: Final = 4  # samples before a size class's residuals are clipped
PRIOR_SPREAD: Final = 0.7  # relative standard deviation of the slope's prior
ROW_SPREAD: Final = 0.02  # standard deviation of row_ms's prior, as a share of a step per row
TRACE: Final = 0.02  # gain of the noise estimate


@dataclass(frozen=True, slots=True)
class Inherited:
    """What other replicas found a step to cost, for as long as nothing of its own is known."""

    base_ms: float
    row_ms: float
    slope_ms: float  # per expert and layer

    def __post_init__(self) -> None:
        for name, least in (("base_ms", 0.0), ("row_ms", 0.0), ("slope_ms", 1e-9)):
            value = getattr(self, name)
            if not least <= value < 1e6:
                raise ValueError(f"{name} must be in [{least:g}, 1e6) ms, got {value!r}")


@dataclass(slots=True)
class ClassCost:
    """Means of one size class; its base is mean_ms - slope * mean_active - row * mean_rows."""

    samples: float = 0.0
    skipped: int = 0
    mean_ms: float = 0.0
    mean_active: float = 0.0
    mean_rows: float = 0.0
    excess_ms: float = 0.0  # how far the base has risen above its undisturbed self
    above: float = 0.0  # CUSUM of slower than predicted
    below: float = 0.0
    shifting: int = 0  # samples left in which a shifted base is re-learned


@dataclass(slots=True)
class CostModel:
    """Least squares with forgetting on within-class deviations: the slope never sees the bases.

    - slope: shared by all size classes, ridge towards the slope over all of them, itself a ridge
      towards `prior_share` of the step; never below 2 % of a step nor so steep that base < 0.
    - forgetting only drops what a sample replaces, so steady operation does not unlearn the slope.
    - residuals are clipped at 3 standard deviations, widened by how far the sample is from home.
    - a CUSUM on the residual re-opens a size class's mean when its base shifts.
    """

    config: ControllerConfig
    inherited: Inherited | None = None
    size_classes: dict[Key, ClassCost] = field(default_factory=dict)
    slope_ms: float = 0.0
    row_ms: float = 0.0
    sigma: float = 0.0  # relative standard deviation of the residual
    shifts: int = 0
    within: list[float] = field(default_factory=lambda: [0.0] * 5)  # xx, xr, rr, xy, ry; 1/ms^2
    pooled: list[float] = field(default_factory=lambda: [0.0] * 5)  # weight, x, y, xx, xy

    def __post_init__(self) -> None:
        self.sigma = self.config.prior_noise

    def inherit(self, law: Inherited) -> None:
        """Start from another's law; once a size class was seen, only the slope's prior is taken."""
        self.inherited = law
        if not any(size_class.samples for size_class in self.size_classes.values()):
            self.slope_ms, self.row_ms = law.slope_ms, law.row_ms

    def base_ms(self, key: Key, rows: float) -> float | None:
        """Cost of a step that reads no expert; an unseen size class takes its neighbour's.

        None while nothing is known of any, nor inherited.
        """
        size_class = self.size_classes.get(key)
        if size_class is None or not size_class.samples:
            known = [s for s in self.size_classes.values() if s.samples]
            if not known:
                law = self.inherited
                return None if law is None else law.base_ms + law.row_ms * rows
            size_class = min(known, key=lambda s: abs(math.log(s.mean_rows / rows)))
        away = self.row_ms * (rows - size_class.mean_rows)
        return max(0.0, size_class.mean_ms - self.slope_ms * size_class.mean_active + away)

    def bases_ms(self) -> dict[str, float | None]:
        """By phase and size class, at the rows that it usually has; for telemetry."""
        return {
            f"{phase.value}/{size}": self.base_ms((phase, size), size_class.mean_rows)
            for (phase, size), size_class in self.size_classes.items()
            if size_class.samples
        }

    def excess_ms(self, key: Key) -> float:
        """The disturbance in a size class's base, where it is more than noise."""
        size_class = self.size_classes.get(key)
        if size_class is None or size_class.excess_ms < 2.0 * self.sigma * size_class.mean_ms:
            return 0.0
        return size_class.excess_ms

    def learn(self, key: Key, rows: float, active: float, ms: float) -> float | None:
        """Take one sample; its relative residual, or None while the size class warms up."""
        size_class = self.size_classes.setdefault(key, ClassCost())
        if not size_class.samples:
            expected = self.base_ms(key, rows)
            plausible = expected is not None and ms < 2.0 * (expected + self.slope_ms * active)
            if not plausible and size_class.skipped < self.config.warmup_steps:
                size_class.skipped += 1
                return None
            size_class.mean_ms, size_class.mean_active, size_class.mean_rows = ms, active, rows
            size_class.samples = 1.0
            self._pool(active, ms)
            self._solve(size_class)
            return None
        apart_active, apart_rows = active - size_class.mean_active, rows - size_class.mean_rows
        fitted = size_class.mean_ms + self.slope_ms * apart_active + self.row_ms * apart_rows
        fitted = max(fitted, 0.05 * size_class.mean_ms)
        residual = ms - fitted
        trust = 1.0 / (fitted * fitted)  # noise grows with the step, so slow steps weigh less
        leverage = trust * apart_active**2 / (self.within[0] + self._ridge(size_class))
        spread = self.sigma * fitted * math.sqrt(1.0 + leverage)
        self._watch(size_class, residual / spread)
        is_steady = size_class.samples >= SETTLED
        bound = CLIP * spread if is_steady else math.inf
        clipped = min(max(residual, -bound), bound)
        gain = max(1.0 / (1.0 + size_class.samples), 1.0 - self.config.forgetting)
        if not size_class.shifting:
            deviation = fitted + clipped - size_class.mean_ms
            weight = (1.0 - gain) * trust
            self._accumulate(apart_active, apart_rows, deviation, weight, leverage)
            self._pool(active, fitted + clipped)
        if is_steady or size_class.shifting:  # a residual far from home speaks of the slope
            risen = size_class.excess_ms + gain * clipped / (1.0 + leverage)
            size_class.excess_ms = max(0.0, risen * (1.0 - 1.0 / self.config.adopt_steps))
        size_class.shifting = max(0, size_class.shifting - 1)
        size_class.samples += 1.0
        size_class.mean_ms += gain * (fitted + clipped - size_class.mean_ms)
        size_class.mean_active += gain * apart_active
        size_class.mean_rows += gain * apart_rows
        if is_steady and leverage < 1.0:
            scale = 1.25 * min(abs(clipped) / spread, 2.5) * self.sigma
            self.sigma = min(max(self.sigma + TRACE * (scale - self.sigma), 0.005), 0.5)
        self._solve(size_class)
        return residual / fitted

    def _watch(self, size_class: ClassCost, score: float) -> None:
        score = min(max(score, -4.0), 4.0)
        size_class.above = max(0.0, size_class.above + score - DRIFT)
        size_class.below = max(0.0, size_class.below - score - DRIFT)
        if max(size_class.above, size_class.below) > ALARM:
            size_class.above = size_class.below = 0.0
            size_class.samples = REOPENED
            size_class.shifting = SETTLED
            self.shifts += 1

    def _ridge(self, size_class: ClassCost) -> float:
        """What the slope's prior weighs: the information in a spread of PRIOR_SPREAD."""
        spread = PRIOR_SPREAD * self.config.prior_share
        return max(
            (self.sigma * size_class.mean_active / (spread * size_class.mean_ms)) ** 2, 1e-15
        )

    def _accumulate(self, x: float, r: float, y: float, weight: float, leverage: float) -> None:
        sums = self.within
        keep = 1.0 - min(1.0 - self.config.slope_forgetting, leverage)
        for i, product in enumerate((x * x, x * r, r * r, x * y, r * y)):
            sums[i] = keep * sums[i] + weight * product

    def _pool(self, x: float, y: float) -> None:
        pooled = self.pooled
        pooled[0] = min(pooled[0] + 1.0, 1.0 / (1.0 - self.config.slope_forgetting))
        gain = 1.0 / pooled[0]
        dx, dy = x - pooled[1], y - pooled[2]
        pooled[1] += gain * dx
        pooled[2] += gain * dy
        keep = self.config.slope_forgetting
        pooled[3] = keep * pooled[3] + (1.0 - gain) * dx * dx
        pooled[4] = keep * pooled[4] + (1.0 - gain) * dx * dy

    def _solve(self, size_class: ClassCost) -> None:
        steepest = 0.98 * size_class.mean_ms / max(size_class.mean_active, 1e-9)
        ridge = self._ridge(size_class)
        prior = self.config.prior_slope_ms
        if self.inherited is not None:
            prior = self.inherited.slope_ms
        if prior is None:
            prior = self.config.prior_share * self.pooled[2] / max(self.pooled[1], 1e-9)
        pooled_ridge = ridge * size_class.mean_ms**2
        prior = (self.pooled[4] + pooled_ridge * prior) / (self.pooled[3] + pooled_ridge)
        prior = min(max(prior, 0.02 * steepest), steepest)
        xx, xr, rr, xy, ry = self.within
        row_ridge = (self.sigma / (ROW_SPREAD * size_class.mean_ms)) ** 2
        xx, rr = xx + ridge, rr + row_ridge
        xy += ridge * prior
        row_ms = (ry * xx - xr * xy) / (xx * rr - xr * xr)
        self.row_ms = min(max(row_ms, 0.0), size_class.mean_ms / max(size_class.mean_rows, 1.0))
        slope_ms = (xy - self.row_ms * xr) / xx
        slope_ms = min(max(slope_ms, 0.02 * steepest), steepest)
        # A base that rose because the slope was too low falls as the slope is learned.
        if size_class.excess_ms < slope_ms * size_class.mean_active:
            risen = max(0.0, slope_ms - self.slope_ms)
            size_class.excess_ms = max(0.0, size_class.excess_ms - risen * size_class.mean_active)
        self.slope_ms = slope_ms
