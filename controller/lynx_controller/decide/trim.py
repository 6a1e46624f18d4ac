"""The slow loop: how far the measured tail of the gaps lies above a step's own time."""

from __future__ import annotations

from dataclasses import dataclass, field

from lynx_controller.config import ControllerConfig
from lynx_controller.decide.promises import Promises
from lynx_controller.learn.window import Window
from lynx_controller.types import Statistic


@dataclass(slots=True)
class Trim:
    config: ControllerConfig
    tails: dict[Statistic, float] = field(default_factory=dict)  # over the step's own time
    ignored: int = 0  # gaps in the window that no cut could pay for
    is_ignoring: bool = False  # more of them than the binding promise allows

    def keep(self, promises: Promises) -> None:
        """Forget what is no longer promised."""
        self.tails = {each: self.tails[each] for each in self.tails if each in promises.limits_ms}

    def track(self, window: Window, promises: Promises, own_ms: float, floor_ms: float) -> None:
        """Move each promise's tail towards what was measured: fast up, slow down.

        own_ms, floor_ms: forecast of the step at the held share and at the floor. What a gap lost
        outside its step counts as far as the floor could win it back.
        """
        ignored = {}
        for statistic, limit_ms in promises.limits_ms.items():
            room_ms = max(0.0, limit_ms * (1.0 - self.config.margin) - floor_ms)
            payable_ms = room_ms * (0.95 if self.is_ignoring else 1.05)
            measured_ms, ignored[statistic] = window.tail_ms(statistic, own_ms, payable_ms)
            measured = measured_ms / own_ms
            tail = self.tails.get(statistic, measured)
            gain = self.config.tail_up if measured > tail else self.config.tail_down
            self.tails[statistic] = tail + gain * (measured - tail)
        statistic = promises.binding(self.tails)[2]
        self.ignored = ignored[statistic]
        allowed = 0.05 if statistic is None else 1.0 - statistic / 100.0
        self.is_ignoring = self.ignored / self.config.window_steps > allowed
