"""The budget of a decision: how many experts a demand leaves each layer, and the cap above them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .estimator import Estimator
from .forecast import Forecast
from .law import Move
from .override import Override
from .types import Decision, Reason


def full(estimator: Estimator, reason: Reason, forecast: Forecast | None = None) -> Decision:
    """Nothing is cut."""
    active, predicted_ms = float(estimator.num_experts * estimator.num_layers), 0.0
    if forecast is not None:
        active, predicted_ms = forecast.active(1.0), forecast.ms(1.0)
    return Decision(
        budget=estimator.full_budget,
        demand=1.0,
        expected_active=estimator.per_layer(active),
        reason=reason,
        saturated=False,
        predicted_ms=predicted_ms,
    )


def fixed(estimator: Estimator, forecast: Forecast | None, override: Override) -> Decision:
    """What an operator fixed."""
    cap = estimator.num_experts if override.cap is None else override.cap
    decision = replace(
        full(estimator, Reason.OVERRIDE, forecast),
        demand=1.0 if override.demand is None else override.demand,
        budget=(cap,) * estimator.num_layers,
    )
    if forecast is None:
        return decision
    active = override.active(forecast, estimator.num_layers, estimator.num_experts)
    return replace(
        decision,
        expected_active=estimator.per_layer(active),
        predicted_ms=forecast.base_ms + forecast.slope_ms * active,
    )


def moved(
    estimator: Estimator,
    forecast: Forecast,
    move: Move,
    cap_slack: float,
    override: Override | None,
) -> Decision:
    """What the law wants: caps `cap_slack` above the expected active experts, at least top-k."""
    active = forecast.active(move.demand)
    expected = estimator.per_layer(active)
    caps = estimator.full_budget
    if move.demand < 1.0:
        slack = np.ceil(cap_slack * np.array(expected))
        limited = np.minimum(np.maximum(slack, estimator.top_k), estimator.num_experts)
        caps = tuple(limited.astype(int).tolist())
    if override is not None and override.cap is not None:
        caps = tuple(min(each, override.cap) for each in caps)
    return Decision(
        budget=caps,
        demand=move.demand,
        expected_active=expected,
        reason=move.reason,
        saturated=move.saturated,
        predicted_ms=forecast.base_ms + forecast.slope_ms * active,
        target_ms=move.target_ms,
    )
