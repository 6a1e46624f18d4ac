"""Fused MoE over the active experts: the public `fused_moe`."""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_kernels.device import missing_for_triton
from lynx_kernels.fused_moe.activation import ACTIVATIONS
from lynx_kernels.fused_moe.cpu import CpuExperts
from lynx_kernels.schedule import Schedule, local_ids

ID_DTYPES = (torch.int32, torch.int64)
CUDA_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def fused_moe(
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
    schedule: Schedule | None = None,
) -> Tensor:
    """Run each row through its experts and sum their outputs by weight.

    out[m] = sum over slots k, ids[m, k] >= 0, of weights[m, k] * down(act(up(hidden[m])))

    Only experts with a row are read. A routed scaling factor belongs into the weights.

    Args:
        hidden: [M, H], float32, bfloat16 or float16.
        w13: [E, 2I, H], gate rows first. w2: [E, H, I]. Dtype as hidden, or float8_e4m3fn with
            scales.
        topk_ids: int32 or int64 [M, K], distinct in a row; -1 is an empty slot, a row of them comes
            out as zeros. Ids from E up are refused on a CPU and empty slots on CUDA, as long as no
            `first_expert` says that they are remote.
        topk_weights: float [M, K].
        w13_bias, w2_bias: [E, 2I], [E, H], added in float32.
        w13_scale, w2_scale: float32, of float8 weights, CUDA only: per 128 x 128 block
            [E, N / 128, D / 128] (rounded up), per row [E, N] or per expert [E] of weights
            [E, N, D].
        activation: "silu", "gelu" (tanh form) or "swiglu_clamped" (gpt-oss), gating.
        is_interleaved: gate and up rows of w13 alternate; CUDA only.
        apply_router_weight_on_input: weigh the expert's input rather than its output.
        first_expert: id of w13[0] on an expert-parallel rank. Slots whose expert another rank has
            add nothing here, and rows without a local expert come out as zeros: the layer's output
            is the sum over ranks. None: all experts are in w13.
        schedule: CUDA only: what `select` returned beside these ids and weights, which are then not
            read again, nor is first_expert. None: made here, by one more launch.

    CPU tensors run in torch, CUDA tensors in Triton (contiguous ones; float32 as TF32). Nothing
    falls back: what a device does not serve is a ValueError that names the argument. Steps that are
    captured once and replayed hold a `Workspace` and call `fused_moe_triton`.
    """
    check_arguments(hidden, w13, w2, topk_ids, topk_weights, w13_bias, w2_bias, activation)
    if first_expert is not None and first_expert < 0:
        raise ValueError(f"first_expert: expected 0 or more, got {first_expert}")
    if hidden.device.type == "cpu":
        check_cpu(w13, w13_scale, w2_scale, is_interleaved, schedule)
        experts = CpuExperts(w13, w2, w13_bias=w13_bias, w2_bias=w2_bias, activation=activation)
        if first_expert is not None:
            topk_ids = local_ids(topk_ids, first_expert, w13.shape[0])
        return experts(
            hidden,
            topk_ids,
            topk_weights,
            apply_router_weight_on_input=apply_router_weight_on_input,
        )
    check_cuda(hidden)
    from lynx_kernels.fused_moe.triton_form import fused_moe_triton
    from lynx_kernels.fused_moe.workspace import Workspace
    from lynx_kernels.select import build_schedule

    return fused_moe_triton(
        hidden,
        w13,
        w2,
        schedule
        or build_schedule(topk_ids, topk_weights, w13.shape[0], first_expert=first_expert or 0),
        workspace=Workspace.allocate(
            w13, w2, max_rows=hidden.shape[0], top_k=topk_ids.shape[1], dtype=hidden.dtype
        ),
        activation=activation,
        is_interleaved=is_interleaved,
        w13_scale=w13_scale,
        w2_scale=w2_scale,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        apply_router_weight_on_input=apply_router_weight_on_input,
    )


def check_cpu(
    w13: Tensor,
    w13_scale: Tensor | None,
    w2_scale: Tensor | None,
    is_interleaved: bool,
    schedule: Schedule | None,
) -> None:
    for name, is_given in (
        ("w13_scale", w13_scale is not None),
        ("w2_scale", w2_scale is not None),
        ("is_interleaved", is_interleaved),
        ("schedule", schedule is not None),
    ):
        if is_given:
            raise ValueError(f"{name}: expected CUDA tensors with it, got tensors on {w13.device}")


def check_cuda(hidden: Tensor) -> None:
    if hidden.device.type != "cuda":
        raise ValueError(f"hidden: expected a tensor on a CPU or CUDA, got one on {hidden.device}")
    reason = missing_for_triton()
    if reason is not None:
        raise ValueError(f"hidden: expected a device that can run Triton, got one where {reason}")
    if hidden.dtype not in CUDA_DTYPES:
        known = ", ".join(map(str, CUDA_DTYPES))
        raise ValueError(f"hidden: expected dtype {known}, got {hidden.dtype}")


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
    is_fp8 = hidden.device.type == "cuda" and w13.dtype == torch.float8_e4m3fn
    weight_dtype = w13.dtype if is_fp8 else hidden.dtype
    num_rows, hidden_size = hidden.shape
    num_experts, gate_up_size = w13.shape[:2]
    inner_size = gate_up_size // 2
    top_k = topk_ids.shape[1]
    expected = (
        ("w13", w13, weight_dtype, (num_experts, 2 * inner_size, hidden_size)),
        ("w2", w2, weight_dtype, (num_experts, hidden_size, inner_size)),
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
