"""Model of the plant: step cost, uncapped active experts and gaps, learned step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from lynx_controller.config import ControllerConfig
from lynx_controller.forecast import Forecast
from lynx_controller.learn.cost import CostModel
from lynx_controller.learn.history import Applied
from lynx_controller.learn.uncapped import PerLayer, UncappedActive
from lynx_controller.learn.window import Window
from lynx_controller.types import Batch, Observation, Phase

MASS_GAIN: Final = 0.05  # per step
LOUD: Final = 4.0  # standard deviations beyond which a residual is a disturbance, not noise


@dataclass(slots=True)
class Estimator:
    config: ControllerConfig
    num_layers: int
    num_experts: int
    top_k: int
    cost: CostModel = field(init=False)
    uncapped: UncappedActive = field(init=False)
    window: Window = field(init=False)
    read_share: float = 1.0  # active over uncapped experts of the last step
    retained: float | None = None  # share of gate mass kept, smoothed over layers and steps

    def __post_init__(self) -> None:
        self.cost = CostModel(self.config)
        self.uncapped = UncappedActive(
            self.num_layers, self.num_experts, self.top_k, self.config.prior_uncapped
        )
        self.window = Window.prior(self.config.window_steps, self.config.prior_noise)

    def layers(self, batch: Batch) -> PerLayer:
        """[L] uncapped active experts of a batch."""
        return self.uncapped.per_layer(self.uncapped.total(batch.key, batch.rows))

    def state(self, percentile: float) -> dict[str, Any]:
        """For telemetry."""
        return {
            "slope_ms": self.cost.slope_ms,
            "row_ms": self.cost.row_ms,
            "noise": self.cost.sigma,
            "shifts": self.cost.shifts,
            "bases_ms": self.cost.bases_ms(),
            "retained_mass": self.retained,
            "windowed_itl_ms": self.window.gap_ms(percentile),
        }

    def readable(self, active_experts: Sequence[float]) -> list[float] | None:
        """[L] active experts of a step; None where they are missing or impossible."""
        active = [float(count) for count in active_experts]
        if len(active) != self.num_layers or not sum(active) > 0.0:  # NaN fails too
            return None
        return active if min(active) >= 0.0 and max(active) <= self.num_experts else None

    def forecast(self, batch: Batch) -> Forecast | None:
        """None until one step's cost is known."""
        base_ms = self.cost.base_ms(batch.key, batch.rows)
        if base_ms is None:
            return None
        uncapped = self.uncapped.total(batch.key, batch.rows)
        return Forecast(
            base_ms,
            self.cost.slope_ms,
            uncapped,
            exact=uncapped * self._exact_share(batch),
            min_active=self.uncapped.min_active(batch.key, batch.rows),
        )

    def disturbance_ms(self, batch: Batch, forecast: Forecast, has_tried_min_share: bool) -> float:
        """The base's excess, once it cannot be mistaken for dearer experts.

        Either experts could never explain it, or the least share was tried and gained nothing.
        """
        excess_ms = self.cost.excess_ms(batch.key)
        experts_ms = forecast.ms(1.0) - forecast.base_ms
        return excess_ms if excess_ms > 2.0 * experts_ms or has_tried_min_share else 0.0

    def observe(self, seen: Observation, batch: Batch, applied: Applied) -> float | None:
        """Learn from a step; the share that caps alone left it, None where that is unknown."""
        gap_ms = seen.step_ms
        if seen.itl_ms is not None and 0.0 < seen.itl_ms <= self.config.max_step_ms:
            gap_ms = seen.itl_ms
        active = self.readable(seen.active_experts)
        is_mixed = seen.batch.phase is Phase.MIXED
        if is_mixed:
            self.learn_gap(batch, applied, gap_ms)
        elif active is not None:
            self.learn(batch, applied, active, seen.step_ms, gap_ms)
        self.watch_mass(seen.retained_mass)
        is_known = active is not None and not is_mixed and batch.flexible_rows == batch.rows
        return self.read_share if is_known and applied.demand >= 1.0 else None

    def learn(
        self, batch: Batch, applied: Applied, active: list[float], step_ms: float, gap_ms: float
    ) -> None:
        """Take a decode step: its cost, its uncapped active experts, and its gap for the tail."""
        total = sum(active)
        residual = self.cost.learn(batch.key, batch.rows, total, step_ms)
        if residual is not None:
            noise = residual if abs(residual) < LOUD * self.cost.sigma else 0.0
            own_ms = step_ms / (1.0 + residual)
            self.window = self.window.push(noise, gap_ms - own_ms * (1.0 + noise), gap_ms)
        if applied.is_certain:
            self._learn_uncapped(batch, applied, np.array(active))
        self.read_share = min(1.0, total / self.uncapped.total(batch.key, batch.rows))

    def learn_gap(self, batch: Batch, applied: Applied, gap_ms: float) -> None:
        """Take a mixed step: the time that its decode rows lost against a step of their own."""
        forecast = self.forecast(batch)
        if forecast is not None:
            active = float(np.minimum(self.layers(batch), applied.budget).sum())
            own_ms = forecast.base_ms + forecast.slope_ms * active
            self.window = self.window.push(0.0, gap_ms - own_ms, gap_ms)

    def watch_mass(self, masses: Sequence[float]) -> None:
        if len(masses) == 0:
            return
        mass = float(sum(masses)) / len(masses)
        if 0.0 <= mass <= 1.0:
            before = mass if self.retained is None else self.retained
            self.retained = before + MASS_GAIN * (mass - before)

    def _exact_share(self, batch: Batch) -> float:
        """Share of the uncapped active experts that exact rows hold, whatever the cap."""
        exact = batch.rows - batch.flexible_rows
        if exact <= 0:
            return 0.0
        return self.uncapped.uniform(exact) / self.uncapped.uniform(batch.rows)

    def _learn_uncapped(self, batch: Batch, applied: Applied, active: PerLayer) -> None:
        caps = np.array(applied.budget, dtype=float) if applied.demand >= 1.0 else None
        if caps is not None and batch.flexible_rows < batch.rows:
            active = np.minimum(active, caps)  # exact rows, not floors, hold the rest
        self.uncapped.learn(batch.key, batch.rows, active, caps)
