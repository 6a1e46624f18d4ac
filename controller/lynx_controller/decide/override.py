"""An operator's fixed budget and demand, and the return to the law without a jump."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from lynx_controller.decide.held import HeldShare
from lynx_controller.decide.law import Move
from lynx_controller.forecast import Forecast


@dataclass(frozen=True, slots=True)
class Override:
    cap: int | None  # per layer; None: no cap
    demand: float | None  # None: 1
    share: float | None = None  # of the uncapped experts, split over the layers; None: not fixed

    @classmethod
    def make(
        cls,
        budget: int | Literal["full"] | None,
        demand: float | None,
        num_experts: int,
        share: float | None = None,
    ) -> Override | None:
        """None where nothing is given. Raises ValueError for a value out of range."""
        if budget is None and demand is None and share is None:
            return None
        if share is not None and not 0.0 < share <= 1.0:
            raise ValueError(f"share must be in (0, 1] or None, got {share!r}")
        if budget == "full":
            budget = num_experts
        is_count = isinstance(budget, int) and not isinstance(budget, bool)
        if budget is not None and (not is_count or budget < 1):
            raise ValueError(f'budget must be at least 1, "full" or None, got {budget!r}')
        if demand is not None and not 0.0 <= demand <= 1.0:
            raise ValueError(f"demand must be in [0, 1] or None, got {demand!r}")
        cap = None if budget is None else min(budget, num_experts)
        return cls(
            cap,
            None if demand is None else float(demand),
            None if share is None else float(share),
        )


@dataclass(slots=True)
class Operator:
    """State of the manual mode.

    AUTO       no override: the law decides
    FIXED      a demand, a share, or a cap without an SLO: the override is the decision
    BOUNDED    a cap under an SLO: the law decides, below the cap
    HAND-OVER  after an override ends: the share walks from its last value to the law's
    """

    override: Override | None = None
    is_handing_over: bool = False

    def set(self, override: Override | None) -> None:
        if override is None:
            self.is_handing_over = self.override is not None
        self.override = override

    def fixed(self, *, has_law: bool) -> Override | None:
        """The override where it alone decides."""
        override = self.override
        if override is None or (override.demand is None and override.share is None and has_law):
            return None
        return override

    def bounded(self, forecast: Forecast, num_layers: int) -> Forecast:
        """The forecast below the override's cap."""
        if self.override is None:
            return forecast
        return replace(forecast, max_active=float((self.override.cap or 1) * num_layers))

    def hand_over(self, move: Move, held: HeldShare, most: float) -> Move:
        """The move, limited to `most` from the held share until it is once within it."""
        away = move.share - held.share
        if not self.is_handing_over or abs(away) <= most:
            self.is_handing_over = False
            return move
        return replace(move, share=held.share + math.copysign(most, away))
