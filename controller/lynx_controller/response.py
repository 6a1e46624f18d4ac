"""How many experts a demand leaves active: one monotone curve per slot, learned online."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from .config import ControllerConfig
from .types import Key

KNOTS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
REACH: Final = 0.5  # how far in demand a sample is evidence
MEMORY: Final = 30.0  # samples a knot remembers
INHERITED: Final = 0.02  # weight of a neighbour's evidence in a new slot
STRANGE: Final = 0.1  # weight beyond that reach, while nothing better is known


@dataclass(slots=True)
class Curve:
    """Active experts at each knot of demand, over those of uniform routing at full quality."""

    rows: int  # when it was made
    values: list[float]
    evidence: list[float]


def interpolate(values: tuple[float, ...] | list[float], demand: float) -> float:
    i = max(bisect_left(KNOTS, demand), 1)
    if i >= len(KNOTS):
        return values[-1]
    place = (demand - KNOTS[i - 1]) / (KNOTS[i] - KNOTS[i - 1])
    return values[i - 1] + place * (values[i] - values[i - 1])


@dataclass(slots=True)
class Response:
    """sum T = curve(demand) * L * E * (1 - (1 - k/E)^rows), the last factor being uniform routing.

    A sample at one demand moves the knots near it by its log error, each the less the more it has
    seen; knots without evidence follow the whole curve. Neighbours are then clamped to monotone.
    """

    config: ControllerConfig
    num_layers: int
    num_experts: int
    top_k: int
    curves: dict[Key, Curve] = field(default_factory=dict)

    def uniform(self, rows: float) -> float:
        """Active experts over all layers if routing were uniform."""
        share = self.top_k / self.num_experts
        return self.num_layers * self.num_experts * (1.0 - math.pow(1.0 - share, rows))

    def curve(self, key: Key, rows: int) -> Curve:
        """This slot's curve; a new slot starts from the one nearest in rows."""
        known = self.curves.get(key)
        if known is None:
            near = min(
                self.curves.values(),
                key=lambda curve: abs(math.log(curve.rows / rows)),
                default=None,
            )
            if near is None:
                known = Curve(rows, self._prior(rows), [0.0] * len(KNOTS))
            else:
                evidence = [INHERITED * n for n in near.evidence]
                known = Curve(rows, list(near.values), evidence)
            self.curves[key] = known
        return known

    def _prior(self, rows: int) -> list[float]:
        top = self.config.prior_natural if rows > 1 else 1.0
        least = min(1.0, self.config.floor / self.top_k)
        bend = self.config.prior_bend
        return [top * (least + (1.0 - least) * knot**bend) for knot in KNOTS]

    def learn(self, curve: Curve, demand: float, ratio: float, is_capped: bool) -> None:
        """ratio: active experts seen over uniform(rows); under a binding cap, a lower bound."""
        ratio = min(max(ratio, 1e-4), 2.0)
        error = math.log(ratio / interpolate(curve.values, demand))
        if is_capped:
            error += 0.1
            if error <= 0.0:
                return
        values, evidence = curve.values, curve.evidence
        for i, knot in enumerate(KNOTS):
            weight = max(STRANGE, 1.0 - abs(demand - knot) / REACH)
            gain = weight / (evidence[i] + weight)
            known = weight**3
            evidence[i] = max(evidence[i], min(evidence[i] + known, MEMORY * known))
            values[i] *= math.exp(gain * error)
        anchor = bisect_left(KNOTS, demand)
        for i in range(anchor + 1, len(KNOTS)):
            values[i] = max(values[i], values[i - 1])
        for i in range(anchor - 1, -1, -1):
            values[i] = min(values[i], values[i + 1])
