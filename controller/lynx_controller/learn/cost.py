"""Step cost, fitted online: ms = base(class) + row_ms * rows + slope_ms * active experts.

With x, r, y the deviations of active experts, rows and ms from their class's means, and weights
w = 1 / fitted^2, since noise grows with the step, weighted recursive least squares sums

    S_ab <- keep * S_ab + w * a * b         a, b in {x, r, y}; keep < 1 only as x informs the slope

and solves the normal equations with a ridge per unknown:

    (S_xx + lambda)  slope + S_xr         row = S_xy + lambda * prior
    S_xr             slope + (S_rr + rho) row = S_ry

Deviations within a class never contain its base, so a base that shifts leaves the slope as it is.
The prior is the slope over all classes together, itself a ridge towards `prior_share` of a step:

    prior = (P_xy + lambda' * prior0) / (P_xx + lambda')

with P the sums of squares about the running means of all samples, lambda' = lambda * ms^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from lynx_controller.config import ControllerConfig
from lynx_controller.types import Key

CLIP: Final = 3.0  # standard deviations at which residuals are clipped
CUSUM_ALLOWANCE: Final = 1.0  # in standard deviations
CUSUM_ALARM: Final = 5.0  # in standard deviations
CUSUM_CLIP: Final = 4.0  # in standard deviations, of one sample
REOPENED: Final = 0.25  # samples that a class keeps when its base shifts: the next one counts 4:1
SETTLED: Final = 4  # samples before a class's residuals are clipped
PRIOR_SPREAD: Final = 0.7  # relative standard deviation of the slope's prior
ROW_SPREAD: Final = 0.02  # standard deviation of row_ms's prior, as a share of a step per row
SIGMA_GAIN: Final = 0.02  # of the noise estimate
SIGMAS: Final = (0.005, 0.5)  # its range
MEAN_ABSOLUTE: Final = 1.25  # standard deviation over mean absolute deviation, of normal noise
MOST_ABSOLUTE: Final = 2.5  # standard deviations that one sample adds to the noise estimate
LEAST_FIT: Final = 0.05  # of a class's mean: no step is fitted as shorter
SHARES: Final = (0.02, 0.98)  # of a step's time, that reading experts may be
PLAUSIBLE: Final = 2.0  # times the expected step: a slower first sample is taken for warm-up
NOTICEABLE: Final = 2.0  # standard deviations of a step, above which an excess is a disturbance
LEAST_RIDGE: Final = 1e-15
LEAST_ACTIVE: Final = 1e-9
LEAST_SLOPE_MS: Final = 1e-9


@dataclass(frozen=True, slots=True)
class StepCost:
    """ms = base + row * rows + slope * sum of T. Raises ValueError for an impossible term."""

    base_ms: float
    row_ms: float
    slope_ms: float  # per expert and layer

    def __post_init__(self) -> None:
        for name, least in (("base_ms", 0.0), ("row_ms", 0.0), ("slope_ms", LEAST_SLOPE_MS)):
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
    excess_ms: float = 0.0  # rise of the base above its undisturbed value
    above: float = 0.0  # CUSUM of steps slower than predicted
    below: float = 0.0  # of faster ones
    shifting: int = 0  # samples left in which a shifted base is re-learned


@dataclass(slots=True)
class WithinSums:
    """S: weighted sums of products of deviations from the class means, in 1/ms^2."""

    xx: float = 0.0
    xr: float = 0.0
    rr: float = 0.0
    xy: float = 0.0
    ry: float = 0.0

    def add(self, x: float, r: float, y: float, weight: float, keep: float) -> None:
        self.xx = keep * self.xx + weight * (x * x)
        self.xr = keep * self.xr + weight * (x * r)
        self.rr = keep * self.rr + weight * (r * r)
        self.xy = keep * self.xy + weight * (x * y)
        self.ry = keep * self.ry + weight * (r * y)


@dataclass(slots=True)
class PooledSums:
    """P: sums of squares about the running means of all samples, whatever their class."""

    samples: float = 0.0
    mean_x: float = 0.0
    mean_y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float, keep: float) -> None:
        self.samples = min(self.samples + 1.0, 1.0 / (1.0 - keep))
        gain = 1.0 / self.samples
        dx, dy = x - self.mean_x, y - self.mean_y
        self.mean_x += gain * dx
        self.mean_y += gain * dy
        self.xx = keep * self.xx + (1.0 - gain) * dx * dx
        self.xy = keep * self.xy + (1.0 - gain) * dx * dy


@dataclass(slots=True)
class CostModel:
    """The fit, kept in range and robust.

    - slope: between 2 % and 98 % of a step, so that the base stays positive.
    - forgetting drops only what a sample replaces: steady operation does not unlearn the slope.
    - residuals are clipped at 3 standard deviations, widened by how far the sample is from home.
    - a CUSUM on the residual re-opens a class's mean when its base shifts.
    """

    config: ControllerConfig
    inherited: StepCost | None = None
    classes: dict[Key, ClassCost] = field(default_factory=dict)
    slope_ms: float = 0.0
    row_ms: float = 0.0
    sigma: float = 0.0  # relative standard deviation of the residual
    shifts: int = 0
    within: WithinSums = field(default_factory=WithinSums)
    pooled: PooledSums = field(default_factory=PooledSums)

    def __post_init__(self) -> None:
        self.sigma = self.config.prior_noise

    def inherit(self, inherited: StepCost) -> None:
        """Start from another's cost; once a class was seen, only the slope's prior is taken."""
        self.inherited = inherited
        if not any(cost.samples for cost in self.classes.values()):
            self.slope_ms, self.row_ms = inherited.slope_ms, inherited.row_ms

    def base_ms(self, key: Key, rows: float) -> float | None:
        """Cost of a step that reads no expert; an unseen class takes its nearest neighbour's.

        None while no class is known and nothing was inherited.
        """
        cost = self.classes.get(key)
        if cost is None or not cost.samples:
            known = [each for each in self.classes.values() if each.samples]
            if not known:
                start = self.inherited
                return None if start is None else start.base_ms + start.row_ms * rows
            cost = min(known, key=lambda each: abs(math.log(each.mean_rows / rows)))
        away = self.row_ms * (rows - cost.mean_rows)
        return max(0.0, cost.mean_ms - self.slope_ms * cost.mean_active + away)

    def bases_ms(self) -> dict[str, float | None]:
        """By phase and size class, at its usual rows; for telemetry."""
        return {
            f"{phase.value}/{size}": self.base_ms((phase, size), cost.mean_rows)
            for (phase, size), cost in self.classes.items()
            if cost.samples
        }

    def excess_ms(self, key: Key) -> float:
        """The disturbance in a class's base, where it is more than noise."""
        cost = self.classes.get(key)
        if cost is None or cost.excess_ms < NOTICEABLE * self.sigma * cost.mean_ms:
            return 0.0
        return cost.excess_ms

    def learn(self, key: Key, rows: float, active: float, ms: float) -> float | None:
        """Take one sample; its relative residual, or None while the class warms up."""
        cost = self.classes.setdefault(key, ClassCost())
        if not cost.samples:
            self._begin(cost, key, rows, active, ms)
            return None
        x, r = active - cost.mean_active, rows - cost.mean_rows
        fitted = cost.mean_ms + self.slope_ms * x + self.row_ms * r
        fitted = max(fitted, LEAST_FIT * cost.mean_ms)
        residual = ms - fitted
        trust = 1.0 / (fitted * fitted)
        leverage = trust * x**2 / (self.within.xx + self._ridge(cost))
        spread = self.sigma * fitted * math.sqrt(1.0 + leverage)
        self._watch(cost, residual / spread)
        is_steady = cost.samples >= SETTLED
        bound = CLIP * spread if is_steady else math.inf
        clipped = min(max(residual, -bound), bound)
        gain = max(1.0 / (1.0 + cost.samples), 1.0 - self.config.forgetting)
        if not cost.shifting:
            y = fitted + clipped - cost.mean_ms
            keep = 1.0 - min(1.0 - self.config.slope_forgetting, leverage)
            self.within.add(x, r, y, (1.0 - gain) * trust, keep)
            self.pooled.add(active, fitted + clipped, self.config.slope_forgetting)
        if is_steady or cost.shifting:  # far from home, a residual shows the slope
            risen = cost.excess_ms + gain * clipped / (1.0 + leverage)
            cost.excess_ms = max(0.0, risen * (1.0 - 1.0 / self.config.adopt_steps))
        cost.shifting = max(0, cost.shifting - 1)
        cost.samples += 1.0
        cost.mean_ms += gain * (fitted + clipped - cost.mean_ms)
        cost.mean_active += gain * x
        cost.mean_rows += gain * r
        if is_steady and leverage < 1.0:
            self._track_noise(abs(clipped) / spread)
        self._solve(cost)
        return residual / fitted

    def _begin(self, cost: ClassCost, key: Key, rows: float, active: float, ms: float) -> None:
        """A class's first sample; `warmup_steps` implausibly slow ones are skipped."""
        expected = self.base_ms(key, rows)
        plausible = expected is not None and ms < PLAUSIBLE * (expected + self.slope_ms * active)
        if not plausible and cost.skipped < self.config.warmup_steps:
            cost.skipped += 1
            return
        cost.mean_ms, cost.mean_active, cost.mean_rows = ms, active, rows
        cost.samples = 1.0
        self.pooled.add(active, ms, self.config.slope_forgetting)
        self._solve(cost)

    def _watch(self, cost: ClassCost, score: float) -> None:
        """Two-sided CUSUM of the standardised residual."""
        score = min(max(score, -CUSUM_CLIP), CUSUM_CLIP)
        cost.above = max(0.0, cost.above + score - CUSUM_ALLOWANCE)
        cost.below = max(0.0, cost.below - score - CUSUM_ALLOWANCE)
        if max(cost.above, cost.below) > CUSUM_ALARM:
            cost.above = cost.below = 0.0
            cost.samples = REOPENED
            cost.shifting = SETTLED
            self.shifts += 1

    def _track_noise(self, score: float) -> None:
        scale = MEAN_ABSOLUTE * min(score, MOST_ABSOLUTE) * self.sigma
        self.sigma = min(max(self.sigma + SIGMA_GAIN * (scale - self.sigma), SIGMAS[0]), SIGMAS[1])

    def _ridge(self, cost: ClassCost) -> float:
        """lambda: the information in a slope known to a spread of PRIOR_SPREAD."""
        spread = PRIOR_SPREAD * self.config.prior_share
        ridge = (self.sigma * cost.mean_active / (spread * cost.mean_ms)) ** 2
        return max(ridge, LEAST_RIDGE)

    def _solve(self, cost: ClassCost) -> None:
        """The normal equations of the module's docstring, in ranges that suit this class."""
        least, most = SHARES
        steepest = most * cost.mean_ms / max(cost.mean_active, LEAST_ACTIVE)
        ridge = self._ridge(cost)
        prior = min(max(self._prior_slope(ridge * cost.mean_ms**2), least * steepest), steepest)
        row_ridge = (self.sigma / (ROW_SPREAD * cost.mean_ms)) ** 2
        sums = self.within
        xx, rr, xr = sums.xx + ridge, sums.rr + row_ridge, sums.xr
        xy = sums.xy + ridge * prior
        row_ms = (sums.ry * xx - xr * xy) / (xx * rr - xr * xr)
        self.row_ms = min(max(row_ms, 0.0), cost.mean_ms / max(cost.mean_rows, 1.0))
        slope_ms = (xy - self.row_ms * xr) / xx
        slope_ms = min(max(slope_ms, least * steepest), steepest)
        # A base that rose because the slope was too low falls as the slope is learned.
        if cost.excess_ms < slope_ms * cost.mean_active:
            risen = max(0.0, slope_ms - self.slope_ms)
            cost.excess_ms = max(0.0, cost.excess_ms - risen * cost.mean_active)
        self.slope_ms = slope_ms

    def _prior_slope(self, ridge: float) -> float:
        """The slope over all classes; before it is known, an inherited or a configured one."""
        pooled = self.pooled
        prior = self.config.prior_slope_ms
        if self.inherited is not None:
            prior = self.inherited.slope_ms
        if prior is None:
            prior = self.config.prior_share * pooled.mean_y / max(pooled.mean_x, LEAST_ACTIVE)
        return (pooled.xy + ridge * prior) / (pooled.xx + ridge)
