"""Fused MoE over the active experts: the public `fused_moe`."""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_kernels.activation import ACTIVATIONS
from lynx_kernels.fused_moe_cpu import CpuExperts

ID_DTYPES = (torch.int32, torch.int64)


def fused_moe(
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
    """Run each row through its experts and sum their outputs by weight.

    out[m] = sum over slots k, ids[m, k] >= 0, of weights[m, k] * down(act(up(hidden[m])))

    Only experts with a row are read. A routed scaling factor belongs into the weights.

    Args:
        hidden: [M, H], float32, bfloat16 or float16.
        w13: [E, 2I, H], gate rows first. w2: [E, H, I]. Dtype as hidden.
        topk_ids: int32 or int64 [M, K]; -1 is an empty slot, a row of them comes out as zeros.
        topk_weights: float [M, K].
        w13_bias, w2_bias: [E, 2I], [E, H], added in float32.
        activation: "silu" or "gelu" (tanh form), gating.
        apply_router_weight_on_input: weigh the expert's input rather than its output.
    """
    check_arguments(hidden, w13, w2, topk_ids, topk_weights, w13_bias, w2_bias, activation)
    experts = CpuExperts(w13, w2, w13_bias=w13_bias, w2_bias=w2_bias, activation=activation)
    return experts(
        hidden, topk_ids, topk_weights, apply_router_weight_on_input=apply_router_weight_on_input
    )


def check_arguments(
    hidden: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    w13_bias: Tensor | None,
    w2_bias: Tensor | None,
    activation: str,
) -> None:
    """Raise ValueError for the first argument that does not fit; no tensor is read."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}; got {activation!r}"
        )
    if hidden.device.type != "cpu":
        raise ValueError(f"hidden: expected a CPU tensor, got one on {hidden.device}")
    for name, tensor, num_dims in (
        ("hidden", hidden, 2),
        ("w13", w13, 3),
        ("topk_ids", topk_ids, 2),
    ):
        if tensor.ndim != num_dims:
            raise ValueError(
                f"{name}: expected {num_dims} dimensions, got shape {tuple(tensor.shape)}"
            )
    if topk_ids.dtype not in ID_DTYPES:
        raise ValueError(f"topk_ids: expected dtype int32 or int64, got {topk_ids.dtype}")
    if not topk_weights.is_floating_point():
        raise ValueError(f"topk_weights: expected a float dtype, got {topk_weights.dtype}")
    num_rows, hidden_size = hidden.shape
    num_experts, gate_up_size = w13.shape[:2]
    inner_size = gate_up_size // 2
    top_k = topk_ids.shape[1]
    expected = (
        ("w13", w13, hidden.dtype, (num_experts, 2 * inner_size, hidden_size)),
        ("w2", w2, hidden.dtype, (num_experts, hidden_size, inner_size)),
        ("topk_ids", topk_ids, None, (num_rows, top_k)),
        ("topk_weights", topk_weights, None, (num_rows, top_k)),
        ("w13_bias", w13_bias, None, (num_experts, 2 * inner_size)),
        ("w2_bias", w2_bias, None, (num_experts, hidden_size)),
    )
    for name, given, dtype, shape in expected:
        if given is None:
            continue
        if (
            given.shape != shape
            or given.device != hidden.device
            or given.dtype != (dtype or given.dtype)
        ):
            raise ValueError(
                f"{name}: expected {dtype or 'any dtype'} {shape} on {hidden.device}, "
                f"got {given.dtype} {tuple(given.shape)} on {given.device}"
            )
