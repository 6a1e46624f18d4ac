"""What the law remembers of one phase and size class: the share that it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from lynx_controller.batch import Batch
from lynx_controller.decide.law import Move
from lynx_controller.forecast import Forecast
from lynx_controller.learn.uncapped import PerLayer
from lynx_controller.types import Reason

STILL: Final = 0.01  # of the uncapped active experts: caps do not follow what moves less
PROBE: Final = 10  # saturated decisions until a slow base is taken for a disturbance


@dataclass(slots=True)
class HeldShare:
    share: float = 1.0
    tail: float = 0.0  # the trim when the share last moved
    caps: PerLayer | None = None  # [L] the last that were made, for this batch
    batch: Batch | None = None
    saturated_run: int = 0  # saturated decisions in a row

    @property
    def has_tried_min_share(self) -> bool:
        return self.saturated_run >= PROBE

    def take(self, move: Move, tail: float) -> None:
        if move.saturated:
            self.saturated_run += 1
        elif move.reason is not Reason.OUTSIDE:
            self.saturated_run = 0
        if move.share != self.share:
            self.share, self.tail = move.share, tail

    def still(self, batch: Batch, forecast: Forecast, share: float) -> PerLayer | None:
        """The caps made before, where the estimates and the share have hardly moved since."""
        if self.caps is None or batch != self.batch:
            return None
        away = forecast.active(share) - float(self.caps.sum())
        return self.caps if abs(away) <= STILL * forecast.uncapped else None

    def keep(self, batch: Batch, caps: PerLayer) -> PerLayer:
        self.batch, self.caps = batch, caps
        return caps

    def walk(self, move: Move, most: float) -> Move:
        """The move itself, or where it lies further than `most` away, that much towards it."""
        away = move.share - self.share
        if abs(away) <= most:
            return move
        return replace(move, share=self.share + math.copysign(most, away))
