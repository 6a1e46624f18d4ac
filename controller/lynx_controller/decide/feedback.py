"""Feedback loop: how far the measured tail of the gaps lies above a step's own time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from lynx_controller.config import ControllerConfig
from lynx_controller.decide.slo_limits import SloLimits
from lynx_controller.learn.window import Window
from lynx_controller.types import Statistic

MEAN_ALLOWANCE: Final = 0.05  # share of the gaps that a limit on the mean may ignore


@dataclass(slots=True)
class Feedback:
    """tail <- tail + gain * (measured - tail), one per limited statistic; gain fast up, slow down.

    measured = statistic of (gap - own time) over own time, at the operating point of now.
    """

    config: ControllerConfig
    tails: dict[Statistic, float] = field(default_factory=dict)
    ignored: int = 0  # gaps in the window that the least share could not have saved
    is_ignoring: bool = False  # more of them than the binding limit allows

    def keep(self, limits: SloLimits) -> None:
        """Forget statistics without a limit."""
        self.tails = {each: self.tails[each] for each in self.tails if each in limits.limits_ms}

    def track(self, window: Window, limits: SloLimits, own_ms: float, min_share_ms: float) -> None:
        """Move each tail towards its measurement.

        own_ms, min_share_ms: forecast of the step at the held and at the least share. Time that a
        gap lost outside its step counts as far as the least share could win it back.
        """
        ignored = {}
        for statistic, limit_ms in limits.limits_ms.items():
            room_ms = max(0.0, limit_ms * (1.0 - self.config.margin) - min_share_ms)
            payable_ms = room_ms * (0.95 if self.is_ignoring else 1.05)
            measured_ms, ignored[statistic] = window.tail_ms(statistic, own_ms, payable_ms)
            measured = measured_ms / own_ms
            tail = self.tails.get(statistic, measured)
            gain = self.config.tail_up if measured > tail else self.config.tail_down
            self.tails[statistic] = tail + gain * (measured - tail)
        statistic = limits.binding(self.tails)[2]
        self.ignored = ignored[statistic]
        allowed = MEAN_ALLOWANCE if statistic is None else 1.0 - statistic / 100.0
        self.is_ignoring = self.ignored / self.config.window_steps > allowed
