"""Recent decisions, to find the budget that a step ran under."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from lynx_controller.types import Decision, Observation

MEMORY: Final = 16  # decisions
SAME: Final = 0.02  # shares this close need not be told apart
UNSURE: Final = 2  # steps, error of the assumed lag


@dataclass(frozen=True, slots=True)
class Applied:
    """Budget and demand of a step."""

    demand: float
    budget: tuple[int, ...]  # [L]
    is_certain: bool  # False while a decision may or may not have arrived


@dataclass(slots=True)
class History:
    full: tuple[int, ...]  # [L] the budget of full quality
    lag_steps: int
    decisions: deque[tuple[int, Decision]] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def remember(self, step: int, decision: Decision) -> None:
        if self.decisions and step < self.decisions[-1][0]:  # the engine counts from zero again
            self.decisions.clear()
        self.decisions.append((step, decision))

    def applied(self, seen: Observation) -> Applied:
        """From the observation, else the decision of lag_steps before it."""
        remembered = self._recall(seen.step)
        demand, budget, is_certain = remembered.demand, remembered.budget, remembered.is_certain
        if seen.demand is not None and 0.0 <= seen.demand <= 1.0:
            demand = float(seen.demand)
        caps = seen.budget_applied
        caps = (caps,) * len(self.full) if isinstance(caps, int) else caps
        if caps is not None and len(caps) == len(self.full) and min(caps) >= 1:
            budget, is_certain = tuple(caps), True
        return Applied(demand, budget, is_certain)

    def _recall(self, step: int) -> Applied:
        found, lately = None, []
        for made, decision in reversed(self.decisions):
            if found is None and made + self.lag_steps <= step:
                found = decision
            if made + self.lag_steps + UNSURE <= step:
                break
            lately.append(decision)
        demand, share, budget = 1.0, 1.0, self.full
        if found is not None:
            demand, share, budget = found.demand, found.share, found.budget
        is_certain = all(
            each.demand == demand and abs(each.share - share) < SAME for each in lately
        )
        return Applied(demand, budget, is_certain)
