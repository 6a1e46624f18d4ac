"""The schedule of a routing that nothing selects, on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_kernels.schedule import Schedule
from lynx_kernels.select.layout import power_of_2
from lynx_kernels.select.policies import FULL
from lynx_kernels.select.selection import RowClass
from lynx_kernels.select.triton_buffers import SelectBuffers
from lynx_kernels.select.triton_form import select_triton


def build_schedule(
    topk_ids: Tensor, topk_weights: Tensor, num_experts: int, *, first_expert: int = 0
) -> Schedule:
    """As `build_schedule_reference`, in one launch up to 256 rows and three above.

    A selection that changes nothing leaves just this: with one routed expert declared, all others
    pass through it, and only `num_experts` from `first_expert` on are scheduled.

    Args:
        topk_ids: int32 or int64 [M, K], distinct in a row.
        topk_weights: float [M, K].
        num_experts: experts in w13. first_expert: id of w13[0].
    """
    num_rows, top_k = topk_ids.shape
    buffers = SelectBuffers.allocate(
        max_rows=power_of_2(num_rows),
        top_k=top_k,
        num_experts=1,
        num_scheduled=num_experts,
        first_expert=first_expert,
        ids_dtype=topk_ids.dtype,
        device=topk_ids.device,
    )
    unread = buffers.numbers.new_empty(())
    chosen = select_triton(
        buffers.weights.new_empty(num_rows, 1),
        topk_ids.contiguous(),
        topk_weights.float().contiguous(),
        topk_ids.new_full((num_rows,), RowClass.EXACT, dtype=torch.uint8),
        budget=unread,
        floor=unread,
        demand=None,
        policy=FULL,
        correction_bias=None,
        out=buffers,
    )
    assert chosen.schedule is not None
    return chosen.schedule
