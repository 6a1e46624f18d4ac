"""What is known about the plant: cost, response, layers and gaps, learned per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import ge
from typing import Any, Final

import numpy as np

from .batch import Batch
from .config import ControllerConfig
from .cost import CostModel
from .forecast import Forecast
from .history import Applied
from .response import Response
from .window import Window

LAYER_GAIN: Final = 0.05  # per step, of each layer's share of the active experts
LOUD: Final = 4.0  # standard deviations beyond which a residual is a disturbance, not noise


@dataclass(slots=True)
class Estimator:
    config: ControllerConfig
    num_layers: int
    num_experts: int
    top_k: int
    cost: CostModel = field(init=False)
    response: Response = field(init=False)
    window: Window = field(init=False)
    layer_share: np.ndarray[tuple[int], np.dtype[np.float64]] = field(init=False)
    retained: float | None = None  # share of gate mass kept, smoothed over layers and steps

    def __post_init__(self) -> None:
        self.cost = CostModel(self.config)
        self.response = Response(self.config, self.num_layers, self.num_experts, self.top_k)
        self.window = Window.prior(self.config.window_steps, self.config.prior_noise)
        self.layer_share = np.full(self.num_layers, 1.0 / self.num_layers)

    @property
    def full_budget(self) -> tuple[int, ...]:
        """[L] the cap that cuts nothing."""
        return (self.num_experts,) * self.num_layers

    def per_layer(self, active: float) -> tuple[float, ...]:
        """[L] active experts, from their sum."""
        layers = np.minimum(self.layer_share * active, self.num_experts)
        return tuple(layers.tolist())

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
        """[L] active experts as a step reported them; None where it did not."""
        active = [float(count) for count in active_experts]
        if len(active) != self.num_layers or not sum(active) > 0.0:  # NaN fails too
            return None
        return active if min(active) >= 0.0 and max(active) <= self.num_experts else None

    def forecast(self, batch: Batch) -> Forecast | None:
        """None until one step's cost is known."""
        base_ms = self.cost.base_ms(batch.key, batch.rows)
        if base_ms is None:
            return None
        uniform = self.response.uniform(batch.rows)
        values = self.response.curve(batch.key, batch.rows).values
        exact = self._exact_share(batch)
        top = values[-1]
        active = tuple(uniform * (exact * top + (1.0 - exact) * value) for value in values)
        return Forecast(base_ms, self.cost.slope_ms, active)

    def disturbance_ms(self, batch: Batch, forecast: Forecast, has_tried_floor: bool) -> float:
        """The base's excess, once it cannot be mistaken for dearer experts.

        Either it is beyond what experts could ever explain, or the floor was tried and did not pay.
        """
        excess_ms = self.cost.excess_ms(batch.key)
        experts_ms = forecast.ms(1.0) - forecast.base_ms
        return excess_ms if excess_ms > 2.0 * experts_ms or has_tried_floor else 0.0

    def learn(
        self, batch: Batch, applied: Applied, active: list[float], step_ms: float, gap_ms: float
    ) -> None:
        """Take a decode step: its cost, its response, its layers, and its gap for the tail."""
        total = sum(active)
        residual = self.cost.learn(batch.key, batch.rows, total, step_ms)
        if residual is not None:
            noise = residual if abs(residual) < LOUD * self.cost.sigma else 0.0
            own_ms = step_ms / (1.0 + residual)
            self.window = self.window.push(noise, gap_ms - own_ms * (1.0 + noise), gap_ms)
        shares = np.array(active) / total
        self.layer_share += LAYER_GAIN * (shares - self.layer_share)
        if applied.is_certain:
            self._learn_response(batch, applied, active, total)

    def learn_gap(self, batch: Batch, applied: Applied, gap_ms: float) -> None:
        """Take a mixed step: only what its decode rows lost against a step of their own."""
        forecast = self.forecast(batch)
        if forecast is not None:
            self.window = self.window.push(0.0, gap_ms - forecast.ms(applied.demand), gap_ms)

    def watch_mass(self, masses: Sequence[float]) -> None:
        if len(masses) == 0:
            return
        mass = sum(float(each) for each in masses) / len(masses)
        if 0.0 <= mass <= 1.0:
            before = mass if self.retained is None else self.retained
            self.retained = before + LAYER_GAIN * (mass - before)

    def _exact_share(self, batch: Batch) -> float:
        """Share of the natural union that exact rows hold, whatever the demand."""
        exact = batch.rows - batch.flexible
        if exact <= 0:
            return 0.0
        return self.response.uniform(exact) / self.response.uniform(batch.rows)

    def _learn_response(
        self, batch: Batch, applied: Applied, active: list[float], total: float
    ) -> None:
        curve = self.response.curve(batch.key, batch.rows)
        ratio = total / self.response.uniform(batch.rows)
        exact = self._exact_share(batch)
        if applied.demand < 1.0 and exact > 0.0:
            if exact > 0.7:
                return
            ratio = (ratio - exact * curve.values[-1]) / (1.0 - exact)
        capped = 0
        if min(applied.budget) < self.num_experts:
            capped = sum(map(ge, active, applied.budget))
        self.response.learn(curve, applied.demand, ratio, 4 * capped >= self.num_layers)
