"""Fused MoE as a plain loop over experts, float32 inside: the definition of `fused_moe`."""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_kernels.fused_moe.activation import ACTIVATIONS

SCALE_BLOCK = 128  # rows, and columns, of weights that share a scale, where scales are per block


def fused_moe_reference(
    hidden: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    activation: str = "silu",
    is_interleaved: bool = False,
    apply_router_weight_on_input: bool = False,
    first_expert: int | None = None,
) -> Tensor:
    """Same contract as `fused_moe`."""
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for expert in range(w13.shape[0]):
        row, slot = torch.where(topk_ids == expert + (first_expert or 0))
        weight = topk_weights[row, slot].float()[:, None]
        x = hidden[row].float()
        x = x * weight if apply_router_weight_on_input else x
        gate_up = x @ _weights_of(w13, w13_scale, expert).T
        if w13_bias is not None:
            gate_up = gate_up + w13_bias[expert].float()
        if is_interleaved:
            gate_up = torch.cat([gate_up[:, ::2], gate_up[:, 1::2]], dim=1)
        y = ACTIVATIONS[activation](gate_up) @ _weights_of(w2, w2_scale, expert).T
        if w2_bias is not None:
            y = y + w2_bias[expert].float()
        out.index_add_(0, row, y if apply_router_weight_on_input else y * weight)
    return out.to(hidden.dtype)


def _weights_of(weights: Tensor, scale: Tensor | None, expert: int) -> Tensor:
    """One expert's weights in float32 [N, D]."""
    wide = weights[expert].float()
    if scale is None:
        return wide
    if scale.ndim < 3:
        return wide * scale[expert].reshape(-1, 1)
    factors = scale[expert].repeat_interleave(SCALE_BLOCK, 0).repeat_interleave(SCALE_BLOCK, 1)
    return wide * factors[: wide.shape[0], : wide.shape[1]]
