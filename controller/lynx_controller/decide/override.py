"""What an operator fixed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Override:
    cap: int | None  # per layer; None: no cap
    demand: float | None  # None: 1

    @classmethod
    def make(
        cls, budget: int | Literal["full"] | None, demand: float | None, num_experts: int
    ) -> Override:
        if budget == "full":
            budget = num_experts
        is_count = isinstance(budget, int) and not isinstance(budget, bool)
        if budget is not None and (not is_count or budget < 1):
            raise ValueError(f'budget must be at least 1, "full" or None, got {budget!r}')
        if demand is not None and not 0.0 <= demand <= 1.0:
            raise ValueError(f"demand must be in [0, 1] or None, got {demand!r}")
        cap = None if budget is None else min(budget, num_experts)
        return cls(cap, None if demand is None else float(demand))
