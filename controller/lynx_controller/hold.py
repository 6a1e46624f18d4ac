"""What the law remembers of one phase and slot: the demand that it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from .law import Move
from .types import Reason

PROBE: Final = 10  # saturated decisions until a slow base is taken for a disturbance


@dataclass(slots=True)
class Hold:
    demand: float = 1.0
    tail: float = 0.0  # the trim when the demand last moved
    floored: int = 0  # saturated decisions in a row

    @property
    def has_tried_floor(self) -> bool:
        return self.floored >= PROBE

    def take(self, move: Move, tail: float) -> None:
        if move.saturated:
            self.floored += 1
        elif move.reason is not Reason.OUTSIDE:
            self.floored = 0
        if move.demand != self.demand:
            self.demand, self.tail = move.demand, tail

    def walk(self, move: Move, most: float) -> Move:
        """The move itself, or where it lies further than `most` away, that much towards it."""
        away = move.demand - self.demand
        if abs(away) <= most:
            return move
        return replace(move, demand=self.demand + math.copysign(most, away))
