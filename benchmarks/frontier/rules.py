"""Rules for an expert's importance, beyond those of `select`.

S steps of M rows, K own experts of a row, E experts. A rule sees all steps of a layer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.frontier.sensitivity import output_of
from models.experts import Experts


@dataclass(slots=True)
class Layer:
    """One layer's routing in all steps, and what a rule may look at."""

    index: int
    experts: Experts
    hidden: Tensor  # [S, M, H], at full quality
    scores: Tensor  # [S, M, E]
    ids: Tensor  # [S, M, K]
    share: Tensor  # p, [S, M, K]
    floors: Tensor  # bool [S, E]
    budget: int

    def summed(self, votes: Tensor) -> Tensor:
        """Votes [S, M, K] by expert: float64 [S, E]."""
        sums = torch.zeros(self.floors.shape, dtype=torch.float64)
        return sums.scatter_add_(1, self.ids.flatten(1), votes.double().flatten(1))

    def cut(self, votes: Tensor) -> Tensor:
        """Floors, then experts by votes up to the budget: bool [S, E]."""
        importance = self.summed(votes).masked_fill(self.floors, torch.inf)
        order = importance.sort(dim=1, descending=True, stable=True).indices
        room = self.floors.sum(1, keepdim=True).clamp(min=self.budget)
        return (order.argsort(dim=1) < room) & (importance > 0)

    def cost(self, allowed: Tensor, exponent: float) -> Tensor:
        """By how much (a row's lost p^2)^exponent differs with and without each own expert."""
        is_kept = allowed.gather(1, self.ids.flatten(1)).view_as(self.ids)
        squares = self.share**2
        lost = (squares * ~is_kept).sum(2, keepdim=True)
        without = torch.where(is_kept, lost + squares, lost)
        return without**exponent - (without - squares).clamp(min=0) ** exponent


Rule = Callable[[Layer], Tensor]  # to the experts that rows may use, bool [S, E]


def power(exponent: float, weigh: list[Tensor] | None = None) -> Rule:
    def rule(layer: Layer) -> Tensor:
        votes = layer.share**exponent
        return layer.cut(votes if weigh is None else votes * weigh[layer.index][layer.ids])

    return rule


def less_substitute(layer: Layer) -> Tensor:
    """A share less half of what the best expert outside would have."""
    own = layer.scores.gather(2, layer.ids).sum(2, keepdim=True)
    outside = layer.scores.scatter(2, layer.ids, -1.0).amax(2, keepdim=True)
    return layer.cut((layer.share - 0.5 * outside / own).clamp(min=1e-6) ** 4)


def second_pass(layer: Layer) -> Tensor:
    """p^4, then again by what rows would lose on top of what that took from them."""
    return layer.cut(layer.cost(layer.cut(layer.share**4), 2))


def greedy(layer: Layer) -> Tensor:
    """One expert at a time goes: the one that rows lose least by, after what they lost already."""
    allowed = layer.summed(torch.ones_like(layer.share)) > 0
    room = layer.floors.sum(1).clamp(min=layer.budget)
    while (is_over := allowed.sum(1) > room).any():
        costs = layer.summed(layer.cost(allowed, 2)).masked_fill(~allowed | layer.floors, torch.inf)
        allowed[is_over, costs.argmin(1)[is_over]] = False
    return allowed


def put_out(layer: Layer) -> Tensor:
    """The squared norm of what each own expert adds to its row."""
    norms = torch.zeros_like(layer.share)
    for expert in range(layer.scores.shape[2]):
        rows = (layer.ids == expert).any(2)
        norms[layer.ids == expert] = output_of(layer.experts, expert, layer.hidden[rows]).norm(
            dim=1
        )
    return layer.cut((layer.share * norms) ** 2)
