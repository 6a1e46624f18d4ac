"""Other implementations of a MoE layer: functions of (weights, hidden, ids, topk_weights)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu import IS_DRY_RUN
from benchmarks.gpu.harness import MAX_ERROR
from benchmarks.gpu.weights import Weights
from lynx_kernels.fused_moe import ACTIVATIONS, SCALE_BLOCK

Rival = Callable[[Weights, Tensor, Tensor, Tensor], Tensor]


def torch_grouped(weights: Weights, hidden: Tensor, ids: Tensor, topk_weights: Tensor) -> Tensor:
    """torch._grouped_mm over sorted rows, with torch operations around it."""
    shape = weights.shape
    order = ids.flatten().argsort(stable=True)
    counts = torch.zeros(shape.num_experts, dtype=torch.int32, device=ids.device)
    counts.scatter_add_(0, ids.flatten().long(), torch.ones_like(ids.flatten()))
    ends = counts.cumsum(0, dtype=torch.int32)
    rows = hidden[order // shape.top_k]
    gate_up = torch._grouped_mm(rows, weights.w13.transpose(1, 2), offs=ends)
    inner = ACTIVATIONS[shape.activation](gate_up)
    y = torch._grouped_mm(inner, weights.w2.transpose(1, 2), offs=ends)
    y = y * topk_weights.flatten()[order, None]
    out = torch.empty_like(y).index_copy_(0, order, y.to(hidden.dtype))
    return out.view(*ids.shape, -1).sum(dim=1)


def sglang(weights: Weights, hidden: Tensor, ids: Tensor, topk_weights: Tensor) -> Tensor:
    """SGLang's Triton chain after top-k, as shipped, or re-tuned by SGLANG_MOE_CONFIG_DIR."""
    return _sglang(weights, hidden, ids, topk_weights, is_swiglu_fused=False)


def sglang_fused(weights: Weights, hidden: Tensor, ids: Tensor, topk_weights: Tensor) -> Tensor:
    """The same with SGLANG_OPT_FUSE_SWIGLU_INTERLEAVED: takes gate and up rows as alternating."""
    return _sglang(weights, hidden, ids, topk_weights, is_swiglu_fused=True)


@functools.cache
def _publish_sglang_settings() -> None:
    """SGLang's layers read settings that a server would have published."""
    from sglang.srt.runtime_context import publish
    from sglang.srt.server_args import ServerArgs

    publish(ServerArgs(model_path="none"), role="scheduler")


def _sglang(
    weights: Weights, hidden: Tensor, ids: Tensor, topk_weights: Tensor, *, is_swiglu_fused: bool
) -> Tensor:
    from sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe import fused_experts_impl

    _publish_sglang_settings()
    is_clamped = weights.shape.activation == "swiglu_clamped"
    is_per_row = weights.shape.scaled == "row"
    out: Tensor = fused_experts_impl(
        hidden,
        weights.w13,
        weights.w2,
        topk_weights,
        ids,
        use_fp8_w8a8=bool(weights.shape.scaled),
        per_channel_quant=is_per_row,
        w1_scale=_unsqueezed(weights.w13_scale, is_per_row),
        w2_scale=_unsqueezed(weights.w2_scale, is_per_row),
        block_shape=[SCALE_BLOCK, SCALE_BLOCK] if weights.shape.scaled == "block" else None,
        b1=weights.w13_bias,
        b2=weights.w2_bias,
        activation="silu" if is_clamped else weights.shape.activation,
        gemm1_alpha=1.702 if is_clamped else None,
        gemm1_limit=7.0 if is_clamped else None,
        gate_up_interleaved=weights.shape.is_interleaved,
        filter_expert=False,
        fuse_swiglu_interleaved=is_swiglu_fused,
    )
    return out


def _unsqueezed(scale: Tensor | None, is_per_row: bool) -> Tensor | None:
    return scale[:, :, None] if scale is not None and is_per_row else scale


RIVALS: dict[str, Rival] = {
    "sglang": sglang,
    "sglang fused swiglu": sglang_fused,
    "torch grouped": torch_grouped,
}


def expected_of(name: str, weights: Weights, hidden: Tensor, ids: Tensor, mix: Tensor) -> Tensor:
    """The right output of a rival from the same tensors."""
    if name == "sglang fused swiglu":
        weights = replace(weights, shape=replace(weights.shape, is_interleaved=True))
    return weights.reference(hidden, ids, mix)


def serves(name: str, weights: Weights) -> bool:
    if IS_DRY_RUN:  # SGLang has no chain for a CPU, and takes long to import
        return name == "torch grouped" and not weights.shape.scaled
    shape = weights.shape
    is_plain = shape.activation == "silu" and not shape.has_bias and not shape.scaled
    return is_plain or name == "sglang"


def max_error_of(name: str, weights: Weights) -> float:
    """SGLang rounds activations to fp8 before both products of fp8 weights: 2^-4 of each value."""
    is_rounding = name in ("sglang", "sglang fused swiglu") and bool(weights.shape.scaled)
    return 2.0**-4 if is_rounding else MAX_ERROR
