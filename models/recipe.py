"""Every setting of a training run, and its learning rate over time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """A step takes `batch` problems of the tasks and `text_batch` of GSM8K's texts.

    Prompts of the tasks weigh `prompt_weight`, texts `text_weight` as a whole. A softmax router is
    balanced by losses, a sigmoid router by its bias, which moves by `bias_rate` a step at the full
    learning rate.
    """

    steps: int = 2400
    minutes: float | None = None
    seed: int = 7
    workers: int = 2
    batch: int = 64
    text_batch: int = 0
    math_share: float = 0.625
    learning_rate: float = 3e-3
    warmup_steps: int = 60
    stable_share: float = 0.45
    weight_decay: float = 0.05
    clip: float = 1.0
    prompt_weight: float = 0.1
    text_weight: float = 0.5
    balance_weight: float = 0.01
    z_weight: float = 1e-4
    bias_rate: float = 2e-3
    validate_every: int = 250
    save_every: int = 100
    validation_problems: int = 48

    def __post_init__(self) -> None:
        lows = {"steps": 1, "workers": 1, "batch": 2, "text_batch": 0, "seed": 0}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be {low} or more, got {getattr(self, name)!r}")
        for name in ("batch", "text_batch"):
            if getattr(self, name) % self.workers:
                raise ValueError(
                    f"{name} must be a multiple of workers, got {getattr(self, name)!r}"
                )
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes!r}")


def learning_rate_scale(recipe: Recipe, step: int, progress: float) -> float:
    """Warm up, hold, then fall to zero along a half cosine."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    decayed = max(0.0, progress - recipe.stable_share) / (1 - recipe.stable_share)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, decayed)))
