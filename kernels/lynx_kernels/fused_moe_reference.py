"""Fused MoE as a plain loop over experts, float32 inside: what `fused_moe` is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_kernels.activation import ACTIVATIONS


def fused_moe_reference(
    hidden: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    activation: str = "silu",
    apply_router_weight_on_input: bool = False,
) -> Tensor:
    """Same contract as `fused_moe`."""
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for expert in range(w13.shape[0]):
        row, slot = torch.where(topk_ids == expert)
        weight = topk_weights[row, slot].float()[:, None]
        x = hidden[row].float()
        gate_up = (x * weight if apply_router_weight_on_input else x) @ w13[expert].float().T
        if w13_bias is not None:
            gate_up = gate_up + w13_bias[expert].float()
        y = ACTIVATIONS[activation](gate_up) @ w2[expert].float().T
        if w2_bias is not None:
            y = y + w2_bias[expert].float()
        out.index_add_(0, row, y if apply_router_weight_on_input else y * weight)
    return out.to(hidden.dtype)
