"""The operator: add to a layer's output what its lost experts' sketches give.

M rows, K slots of a row, E experts, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.sketches.factors import Factors


def add_sketches(out: Tensor, x: Tensor, ids: Tensor, weights: Tensor, factors: Factors) -> Tensor:
    """`out` plus, for each lost slot, its weight times its expert's sketch of the row.

    A lost expert's factors are read once, for all rows that lost it. Experts are added in rising
    order. Rows that lose nothing keep their bits.

    Args:
        out: float [M, H], the layer's output of the experts that ran.
        x: float [M, H], the layer's input.
        ids: int64 [M, K], lost experts; -1 for a slot that is not lost.
        weights: float [M, K]; read in lost slots alone.

    Raises:
        ValueError: shapes that do not fit, or an id outside [-1, E).
    """
    check(out, x, ids, weights, factors)
    rows, slots = (ids >= 0).nonzero(as_tuple=True)
    lost = ids[rows, slots]
    result = out.clone()
    for expert in lost.unique().tolist():
        chosen = lost == expert
        mine = rows[chosen]
        scale = weights[mine, slots[chosen]].unsqueeze(1)
        result.index_add_(0, mine, scale * factors.of_expert(expert, x[mine]))
    return result


def add_sketches_reference(
    out: Tensor, x: Tensor, ids: Tensor, weights: Tensor, factors: Factors
) -> Tensor:
    """`add_sketches`, slot by slot in float64."""
    check(out, x, ids, weights, factors)
    result = out.double()
    for row, chosen in enumerate(ids.tolist()):
        for slot, expert in enumerate(chosen):
            if expert >= 0:
                ranks = slice(factors.starts[expert], factors.starts[expert + 1])
                inner = factors.down[ranks].double() @ x[row].double()
                stand_in = factors.up[ranks].double().t() @ inner + factors.bias[expert].double()
                result[row] += weights[row, slot].double() * stand_in
    return result.to(out.dtype)


def check(out: Tensor, x: Tensor, ids: Tensor, weights: Tensor, factors: Factors) -> None:
    """Raise a ValueError for what `add_sketches` cannot take."""
    if out.shape != x.shape or x.shape[1:] != factors.bias.shape[1:]:
        raise ValueError(
            f"out, x: expected [M, {factors.bias.shape[1]}], got {[*out.shape]} and {[*x.shape]}"
        )
    if ids.shape != weights.shape or len(ids) != len(x):
        raise ValueError(
            f"ids, weights: expected [{len(x)}, K], got {[*ids.shape]} and {[*weights.shape]}"
        )
    if ids.numel() and not -1 <= int(ids.min()) <= int(ids.max()) < factors.num_experts:
        raise ValueError(
            f"ids: expected -1 to {factors.num_experts - 1}, "
            f"got {int(ids.min())} to {int(ids.max())}"
        )


def lost_slots(before: Tensor, after: Tensor) -> Tensor:
    """Ids [M, K] of the experts of `before` that are not in the row's `after`; -1 elsewhere."""
    is_kept = (before.unsqueeze(2) == after.unsqueeze(1)).any(dim=2)
    return before.masked_fill(is_kept, -1)


def values_read(ids: Tensor, factors: Factors) -> Tensor:
    """Numbers that each step reads of factors: int64 [S] of lost ids [S, M, K]."""
    steps = ids.flatten(1)
    is_lost = torch.zeros(len(steps), factors.num_experts + 1, dtype=torch.bool)
    is_lost.scatter_(1, steps + 1, True)  # column 0: slots that are not lost
    return (is_lost[:, 1:] * factors.sizes).sum(dim=1)
