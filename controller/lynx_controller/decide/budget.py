"""The budget of a decision: a share of the uncapped active experts, as a cap per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lynx_controller.decide.law import Move
from lynx_controller.decide.override import Override
from lynx_controller.forecast import Forecast
from lynx_controller.learn.uncapped import PerLayer
from lynx_controller.types import Decision, Reason

MOST_OFFSET: Final = 0.5
MOST_MEASURED_OFFSET: Final = 0.2


def offsets_at_least_kl(levels: Sequence[float], slope: float) -> list[float]:
    """[L] offsets with the least total KL at a given mean share; their mean is 0.

    Cut alone to share s, layer l costs near exp(levels_l - slope * s) nats. The sum is least at
    equal derivatives: s_l = mean + (levels_l - their mean) / slope. A slope of 0 or less means that
    no cut cost more than a lighter one: no offsets.
    """
    if slope <= 0.0:
        return [0.0] * len(levels)
    away = np.array(levels) - np.mean(levels)
    offsets = np.clip(away / slope, -MOST_MEASURED_OFFSET, MOST_MEASURED_OFFSET)
    return [round(float(each), 4) for each in offsets - offsets.mean()]


@dataclass(slots=True)
class Budget:
    """Turns a share into caps; layers that lose more by a cut get a larger share."""

    num_experts: int
    top_k: int
    offsets: PerLayer  # [L] by how much a layer's share differs from the mean, at half and below

    @classmethod
    def of(
        cls, num_layers: int, num_experts: int, top_k: int, offsets: Sequence[float] | None
    ) -> Budget:
        """Raises ValueError unless offsets are one number per layer within +-MOST_OFFSET."""
        given = np.array([0.0] * num_layers if offsets is None else offsets)
        if given.shape != (num_layers,) or not np.all(np.abs(given) <= MOST_OFFSET):
            raise ValueError(
                f"layer_offsets must be {num_layers} numbers in [-{MOST_OFFSET}, {MOST_OFFSET}], "
                f"got {offsets!r}"
            )
        return cls(num_experts, top_k, given)

    @property
    def full_caps(self) -> tuple[int, ...]:
        """[L] the budget of full quality."""
        return (self.num_experts,) * len(self.offsets)

    def caps(self, layers: PerLayer, exact: float, share: float) -> PerLayer:
        """[L] whole caps for layers that use so many uncapped: at least top-k, the share in sum.

        cap_l = N_l * (exact + (1 - exact) * (share + offset_l * min(1, 2 * (1 - share))))
        `exact`: share of the experts that exact rows hold. Rounded by largest remainder.
        """
        if share >= 1.0:
            return np.full(len(layers), float(self.num_experts))
        away = self.offsets - self.offsets @ layers / layers.sum()
        shares = share + min(1.0, 2.0 * (1.0 - share)) * away
        wanted = layers * (exact + (1.0 - exact) * shares)
        wanted = np.minimum(np.maximum(wanted, self.top_k), self.num_experts)
        caps: PerLayer = np.floor(wanted)
        left = round(float((wanted - caps).sum()))
        caps[np.argsort(caps - wanted, kind="stable")[:left]] += 1.0
        return caps

    def full(self, reason: Reason, layers: PerLayer, forecast: Forecast | None = None) -> Decision:
        """Full quality; `layers` [L]: uncapped active experts."""
        return Decision(
            budget=self.full_caps,
            demand=1.0,
            expected_active=tuple(layers.tolist()),
            reason=reason,
            saturated=False,
            predicted_ms=0.0 if forecast is None else forecast.ms(1.0),
        )

    def fixed(
        self, override: Override, layers: PerLayer, forecast: Forecast | None, read_share: float
    ) -> Decision:
        """An operator's decision. `read_share`: the last step's, as a demand has no forecast."""
        decision = self.full(Reason.OVERRIDE, layers, forecast)
        if override.demand is not None:
            decision = replace(decision, demand=override.demand)
            layers = layers * (read_share if override.demand < 1.0 else 1.0)
        if override.cap is not None:
            decision = replace(decision, budget=(override.cap,) * len(layers))
            layers = np.minimum(layers, override.cap)
        if override.share is not None:
            exact = 0.0 if forecast is None else forecast.exact / forecast.uncapped
            caps = np.minimum(self.caps(layers, exact, override.share), decision.budget)
            decision = replace(
                decision, budget=tuple(caps.astype(int).tolist()), share=override.share
            )
            layers = np.minimum(layers, caps)
        if forecast is None:
            return decision
        active = float(layers.sum())
        return replace(
            decision,
            expected_active=tuple(layers.tolist()),
            predicted_ms=forecast.base_ms + forecast.slope_ms * active,
            share=override.share or min(1.0, active / forecast.uncapped),
        )

    def moved(
        self,
        move: Move,
        layers: PerLayer,
        caps: PerLayer,
        forecast: Forecast,
        override: Override | None,
        **terms: float,
    ) -> Decision:
        """The law's move in these caps [L], below an operator's; `terms`: of the decision."""
        if override is not None and override.cap is not None:
            caps = np.minimum(caps, override.cap)
        return Decision(
            budget=tuple(caps.astype(int).tolist()),
            demand=1.0,
            expected_active=tuple(np.minimum(layers, caps).tolist()),
            reason=move.reason,
            saturated=move.saturated,
            predicted_ms=forecast.ms(move.share),
            target_ms=move.target_ms,
            share=move.share,
            **terms,
        )
