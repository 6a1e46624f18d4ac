"""What the law remembers of one phase and slot: the share that it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from .law import Move
from .types import Reason

PROBE: Final = 10  # saturated decisions until a slow base is taken for a disturbance


@dataclass(slots=True)
class Hold:
    share: float = 1.0
    tail: float = 0.0  # the trim when the share last moved
    floored: int = 0  # saturated decisions in a row

    @property
    def has_tried_floor(self) -> bool:
        return self.floored >= PROBE

    def take(self, move: Move, tail: float) -> None:
        if move.saturated:
            self.floored += 1
        elif move.reason is not Reason.OUTSIDE:
            self.floored = 0
        if move.share != self.share:
            self.share, self.tail = move.share, tail

    def walk(self, move: Move, most: float) -> Move:
        """The move itself, or where it lies further than `most` away, that much towards it."""
        away = move.share - self.share
        if abs(away) <= most:
            return move
        return replace(move, share=self.share + math.copysign(most, away))
