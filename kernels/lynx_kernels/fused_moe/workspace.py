"""Scratch of the fused MoE on a GPU: sizes and addresses fixed before a graph is captured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_kernels import scratch
from lynx_kernels.device import arch_of, sm_count
from lynx_kernels.fused_moe.plan import make_plan
from lynx_kernels.fused_moe.tuning import SIZE_CLASSES, Layer


@dataclass(frozen=True, slots=True)
class Workspace:
    """Arrays that pass between a layer's kernels. Layers that run in turn may share them."""

    layer: Layer
    num_sms: int
    max_rows: int
    top_k: int
    inner: Tensor  # dtype of hidden [M * K, I]: weighted activations of each scheduled row
    sums: Tensor  # float32 [1, n]: partial sums of splits, or products of each scheduled row
    arrivals: Tensor  # int32 [n]: splits that have arrived, per block; zero between launches

    @classmethod
    def allocate(
        cls, w13: Tensor, w2: Tensor, *, max_rows: int, top_k: int, dtype: torch.dtype
    ) -> Workspace:
        """For batches of up to max_rows rows with top_k slots; dtype is that of hidden.

        w13 [E, 2I, H], w2 [E, H, I]
        """
        layer, num_sms = layer_of(w13, w2), sm_count(w13.device)
        sizes = {max_rows, *(size for size in SIZE_CLASSES if size < max_rows)}
        plans = [make_plan(layer, num_sms, num_rows, top_k) for num_rows in sizes]
        num_sums = max(plan.num_sums for plan in plans)
        num_blocks = max(plan.num_down_blocks for plan in plans)
        num_pairs = max_rows * top_k
        return cls(
            layer=layer,
            num_sms=num_sms,
            max_rows=max_rows,
            top_k=top_k,
            inner=scratch.empty(
                num_pairs, layer.intermediate_size, like=w2.new_empty(0, dtype=dtype)
            ),
            sums=scratch.empty(1, num_sums, like=w2.new_empty(0, dtype=torch.float32)),
            arrivals=torch.zeros(num_blocks, dtype=torch.int32, device=w2.device),
        )


def layer_of(w13: Tensor, w2: Tensor) -> Layer:
    """w13 [E, 2I, H], w2 [E, H, I]"""
    return Layer(
        arch=arch_of(w13.device),
        element_bytes=w13.element_size(),
        hidden_size=w13.shape[2],
        intermediate_size=w2.shape[2],
        num_experts=w13.shape[0],
    )
