"""The binding limit of a step: the gaps' SLO, or the queue's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lynx_controller.decide.law import Move
from lynx_controller.decide.queue_pressure import QueuePressure
from lynx_controller.decide.slo_limits import SloLimits
from lynx_controller.types import Reason, Statistic


@dataclass(frozen=True, slots=True)
class Limit:
    ms: float  # inf: none
    tail: float  # relative tail of the gaps above the step time; 0 for the queue's
    is_queue: bool

    @classmethod
    def of(
        cls,
        limits: SloLimits,
        tails: Mapping[Statistic, float],
        queue: QueuePressure,
        full_ms: float,
    ) -> Limit:
        """Whichever leaves the step less time. full_ms: forecast at full quality."""
        slo_ms, tail, _ = limits.binding(tails)
        queue_ms = queue.limit_ms(limits.ttft_ms, full_ms)
        if queue_ms < slo_ms / max(1.0 + tail, 0.5):
            return cls(queue_ms, 0.0, True)
        return cls(slo_ms, tail, False)

    def explain(self, move: Move) -> Move:
        """The move with QUEUE as its reason where the queue made the cut."""
        if self.is_queue and not move.saturated and move.share < 1.0:
            return replace(move, reason=Reason.QUEUE)
        return move
