"""Every constant of the controller, with its unit and range."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

_RANGES: Final[dict[str, tuple[float, float]]] = {
    "min_retained_mass": (0.01, 1.0),
    "margin": (0.0, 0.5),
    "down_band": (0.0, 0.5),
    "up_band": (0.0, 0.5),
    "rise": (0.01, 1.0),
    "handover": (0.01, 1.0),
    "tail_up": (0.0, 1.0),
    "tail_down": (0.0, 1.0),
    "forgetting": (0.9, 0.9999),
    "slope_forgetting": (0.9, 0.9999),
    "prior_share": (0.05, 0.95),
    "prior_slope_ms": (1e-9, 1e3),
    "prior_noise": (0.005, 0.5),
    "prior_uncapped": (0.1, 1.0),
    "window_steps": (16, 1024),
    "warmup_steps": (0, 100),
    "adopt_steps": (10, 10_000_000),
    "lag_steps": (0, 8),
    "max_quality_loss": (1e-7, 10.0),
    "prior_kl": (1e-6, 100.0),
    "max_step_ms": (1.0, 1e7),
}


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """Defaults suit a plant with 5 % noise and two steps of lag."""

    min_retained_mass: float = 0.75  # mean over rows; the operator's limit
    max_quality_loss: float | None = None  # mean KL to the full model, nats per token; None: any
    prior_kl: float = 0.3  # nats per token with all mass lost, before the first shadow pass

    margin: float = 0.02  # share of the SLO kept free
    down_band: float = 0.015  # predicted this share above the target: cut
    up_band: float = 0.05  # predicted this share below the target: raise the share
    rise: float = 0.5  # share of the way up per step
    handover: float = 0.1  # largest change of the share per step after an override ends
    tail_up: float = 0.25  # gain per step while the measured tail is above its estimate
    tail_down: float = 0.01  # gain per step while it is below

    forgetting: float = 0.98  # per sample, of a size class's mean
    slope_forgetting: float = 0.998  # per informative sample, of the slope
    prior_share: float = 0.5  # of a step's time spent reading experts, before the first sample
    prior_slope_ms: float | None = None  # ms per expert and layer; None: from prior_share
    prior_noise: float = 0.05  # relative standard deviation of a step's time
    prior_uncapped: float = 0.85  # uncapped active experts over those of uniform routing

    window_steps: int = 64  # decode gaps behind the measured percentile
    warmup_steps: int = 2  # first samples of a size class that may be ignored
    adopt_steps: int = 100_000  # until a lasting disturbance counts as part of the base
    lag_steps: int = 2  # from a decision to its first step, unless observations hold the budget
    max_step_ms: float = 60_000.0  # longer steps are unusable

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = _RANGES[field.name]
            if value is None and field.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{field.name} must be a number, got {value!r}")
            if isinstance(low, int) and not isinstance(value, int):
                raise ValueError(f"{field.name} must be a whole number, got {value!r}")
            if not math.isfinite(value) or not low <= value <= high:
                raise ValueError(f"{field.name} must be in [{low}, {high}], got {value!r}")
