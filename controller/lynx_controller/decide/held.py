"""Memory of the law for one phase and size class: the share that it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lynx_controller.decide.law import Move
from lynx_controller.forecast import Forecast
from lynx_controller.learn.uncapped import PerLayer
from lynx_controller.types import Batch, Key, Reason

STILL: Final = 0.01  # of the uncapped active experts: smaller moves leave the caps as they are
PROBE: Final = 10  # saturated decisions until a slow base counts as a disturbance


@dataclass(slots=True)
class HeldShare:
    share: float = 1.0
    tail: float = 0.0  # the measured tail when the share last moved
    caps: PerLayer | None = None  # [L] last caps
    rows: tuple[Key, int, int] | None = None  # key, rows and flexible rows they were made for
    saturated_run: int = 0  # saturated decisions in a row

    @property
    def has_tried_min_share(self) -> bool:
        return self.saturated_run >= PROBE

    def take(self, move: Move, tail: float) -> None:
        """Remember a move that is decided."""
        if move.saturated:
            self.saturated_run += 1
        elif move.reason is not Reason.OUTSIDE:
            self.saturated_run = 0
        if move.share != self.share:
            self.share, self.tail = move.share, tail

    def kept_caps(self, batch: Batch, forecast: Forecast, share: float) -> PerLayer | None:
        """[L] the last caps, where the estimates and the share have hardly moved since."""
        if self.caps is None or self.rows != (batch.key, batch.rows, batch.flexible_rows):
            return None
        away = forecast.active(share) - float(self.caps.sum())
        return self.caps if abs(away) <= STILL * forecast.uncapped else None

    def keep_caps(self, batch: Batch, caps: PerLayer) -> PerLayer:
        self.rows, self.caps = (batch.key, batch.rows, batch.flexible_rows), caps
        return caps
