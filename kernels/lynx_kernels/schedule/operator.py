"""The work list of the fused MoE: which experts run, and on which rows, sorted by expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rows sorted by expert, on the device, at fixed addresses and capacity.

    E counts the experts of w13: the routed ones and any fused shared ones, or the local range of an
    expert-parallel rank. Entries of `experts`, `counts` and `offsets` from `num_active` up, and of
    `tokens` and `weights` from the sum of the counts up, are whatever was there before: no reader
    may look at them, so nothing is ever cleared.
    """

    num_active: Tensor  # int32 [1]
    experts: Tensor  # int32 [E], indices into w13 of the active experts, ascending
    counts: Tensor  # int32 [E], rows of the j-th active expert
    offsets: Tensor  # int32 [E], its first row: the sum of the counts before it
    tokens: Tensor  # int32 [M * K], token of each row, ascending inside an expert
    weights: Tensor  # float32 [M * K], routing weight of each row
    slots: Tensor  # int32 [M, K], row of each (token, slot); -1 where it is empty or remote


def local_ids(topk_ids: Tensor, first_expert: int, num_experts: int) -> Tensor:
    """topk_ids as indices into w13, -1 where they are outside [first_expert, + num_experts)."""
    index = topk_ids - first_expert
    return index.masked_fill((index < 0) | (index >= num_experts), -1)


def build_schedule_reference(
    topk_ids: Tensor, topk_weights: Tensor, num_experts: int, *, first_expert: int = 0
) -> Schedule:
    """The schedule of any routing, in torch operations: no host sync, fixed shapes.

    Args:
        topk_ids: int [M, K]. Ids outside [first_expert, first_expert + num_experts) are skipped.
        topk_weights: float [M, K].
        num_experts: experts in w13.
        first_expert: id of w13[0], not 0 on expert-parallel ranks.
    """
    num_rows, top_k = topk_ids.shape
    index = local_ids(topk_ids.long().flatten(), first_expert, num_experts)
    index = index.masked_fill(index < 0, num_experts)
    order = index.argsort(stable=True)  # by expert, then by token
    place = torch.empty_like(order).scatter_(
        0, order, torch.arange(len(order), device=order.device)
    )
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=index.device)
    counts = counts.scatter_add_(0, index, torch.ones_like(index))[:-1]
    offsets = counts.cumsum(0) - counts
    experts = (counts == 0).int().argsort(stable=True)  # active ones first, both ascending
    return Schedule(
        num_active=(counts > 0).sum(dtype=torch.int32).reshape(1),
        experts=experts.int(),
        counts=counts[experts].int(),
        offsets=offsets[experts].int(),
        tokens=(order // max(top_k, 1)).int(),
        weights=topk_weights.flatten()[order].float(),
        slots=place.masked_fill(index == num_experts, -1).int().reshape(num_rows, top_k),
    )
