"""Feedback from measured retained mass to the least share: the operator's limit holds.

    kept     measured retained mass, mean over rows and layers, smoothed over SMOOTH steps
    lift     added to the least share of the quality model
    kept < least mass                             lift += UP * (least mass - kept)
    kept > least mass, at the least share         lift -= DOWN * (kept - least mass)

The quality model expects a loss of at most twice the square of the cut. Requests that route alike
lose more: all rows lose the same capped experts. Up is fast, since each step below the limit costs
quality; down is slow, and a lighter cut says nothing of the least share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lynx_controller.learn.quality import mean_mass
from lynx_controller.types import Key

UP: Final = 0.1
DOWN: Final = 0.02
SMOOTH: Final = 4.0
NEAR: Final = 0.02  # shares this close to the least one count as the least


@dataclass(slots=True)
class MassFeedback:
    """Per phase and size class; a new one starts where its nearest neighbour is."""

    lifts: dict[Key, float] = field(default_factory=dict)
    kept: dict[Key, float] = field(default_factory=dict)

    def lift(self, key: Key) -> float:
        if key not in self.lifts:
            near = min(self.lifts, key=lambda each: abs(math.log(each[1] / key[1])), default=None)
            self.lifts[key] = 0.0 if near is None else self.lifts[near]
        return self.lifts[key]

    def observe(
        self, key: Key, masses: Sequence[float], share: float, min_share: float, least_mass: float
    ) -> None:
        """Take a finished step.

        masses: [L], of the flexible rows. share, min_share: decided for the step, and the least
        one then. least_mass: the operator's limit.
        """
        if share >= 1.0 and min_share < 1.0 - NEAR:
            return  # nothing was cut
        mass = mean_mass(masses)
        if mass is None:
            return
        kept = self.kept.get(key, mass)
        kept += (mass - kept) / SMOOTH
        self.kept[key] = kept
        below = least_mass - kept
        if below > 0.0:
            change = UP * below
        elif share <= min_share + NEAR:
            change = DOWN * below
        else:
            return
        self.lifts[key] = min(max(self.lift(key) + change, 0.0), 1.0)
