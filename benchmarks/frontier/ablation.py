"""Forms of our own policy that `select` can run, one change at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.frontier.candidates import budget_of
from benchmarks.frontier.gate import Setting
from benchmarks.frontier.sensitivity import layer_budgets
from lynx_kernels import POLICIES
from lynx_kernels.select.policies import Importance, Weights

SHARES = (0.35, 0.5)


def variants(uncapped: float, offsets: Sequence[float]) -> Iterator[tuple[str, Setting]]:
    lynx = POLICIES["lynx"]
    forms = {
        "lynx": lynx,
        "importance p": replace(lynx, importance=Importance.SHARE),
        "importance votes": replace(lynx, importance=Importance.VOTES),
        "no refill": replace(lynx, is_refilling=False),
        "renormalised": replace(lynx, weights=Weights.SCORES),
        "no refill, survivors scaled": replace(lynx, is_refilling=False, weights=Weights.SURVIVORS),
    }
    for share in SHARES:
        budget = budget_of(share, uncapped)
        for name, policy in forms.items():
            yield name, Setting(policy, budget)
        yield "no floor", Setting(lynx, budget, None, 0)
        yield "floor 2", Setting(lynx, budget, None, 2)
        yield "cap and demand .8", Setting(lynx, budget, 0.8)
        by_layer = layer_budgets(offsets, share, uncapped)
        yield "cap by layer", Setting(lynx, by_layer)
        yield "contributions", Setting(lynx, budget, is_weighing=True)
        yield "cap by layer, contributions", Setting(lynx, by_layer, is_weighing=True)
    for demand in (0.3, 0.4, 0.5, 0.6):
        yield "demand alone", Setting(lynx, None, demand)
