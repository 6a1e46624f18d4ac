"""The controllers that the scorecard compares. Each maps an observation to (demand, caps)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lynx_controller import Controller, ControllerConfig, Decision, Observation, Slo
from lynx_controller.simulator import Plant, Setting


class Policy(Protocol):
    def __call__(self, seen: Observation) -> Setting: ...


@dataclass
class Static:
    """One demand for the whole run; 1 is full quality."""

    demand: float
    budget: tuple[int, ...]

    def __call__(self, seen: Observation) -> Setting:
        return self.demand, self.budget


@dataclass
class BrownoutServe:
    """arXiv 2507.17133: every 5 s, p90 > SLO: x 0.8; p90 < 0.8 SLO: + 0.1; else hold.

    Moves our demand in place of its share of requests, with our floor (it has none).
    """

    slo_ms: float
    budget: tuple[int, ...]
    floor: float
    demand: float = 1.0
    gaps_ms: list[float] = field(default_factory=list)

    def __call__(self, seen: Observation) -> Setting:
        self.gaps_ms.append(seen.step_ms if seen.itl_ms is None else seen.itl_ms)
        if sum(self.gaps_ms) >= 5000.0:
            p90 = float(np.percentile(self.gaps_ms, 90))
            if p90 > self.slo_ms:
                self.demand = max(self.floor, self.demand * 0.8)
            elif p90 < 0.8 * self.slo_ms:
                self.demand = min(1.0, self.demand + 0.1)
            self.gaps_ms.clear()
        return self.demand, self.budget


@dataclass
class Lynx:
    controller: Controller
    decisions: list[Decision] = field(default_factory=list)

    def __call__(self, seen: Observation) -> Setting:
        decision = self.controller.step(seen)
        self.decisions.append(decision)
        return decision.demand, decision.budget


def lynx(plant: Plant, slo_ms: float, config: ControllerConfig) -> Lynx:
    slo = Slo(itl_ms=slo_ms, percentile=95)
    return Lynx(Controller(slo, plant.num_layers, plant.num_experts, plant.top_k, config))
