"""Fused MoE on a GPU: the host side; two launches up to 64 rows, three above."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from lynx_kernels.fused_moe.activation import ACTIVATIONS
from lynx_kernels.fused_moe.plan import Plan, make_plan
from lynx_kernels.fused_moe.reference import SCALE_BLOCK
from lynx_kernels.fused_moe.triton_down_kernels import (
    combine_kernel,
    down_concat_kernel,
    down_kernel,
)
from lynx_kernels.fused_moe.triton_gate_up_kernels import gate_up_kernel
from lynx_kernels.fused_moe.triton_projection import Projection
from lynx_kernels.fused_moe.tuning import GemmTiles
from lynx_kernels.fused_moe.workspace import Workspace
from lynx_kernels.schedule import Schedule

COMBINE_COLUMNS = 512
MAX_ELEMENTS = 2**31  # of an expert's matrix: inside, kernels count in 32 bits


def fused_moe_triton(
    hidden: Tensor,
    w13: Tensor,
    w2: Tensor,
    schedule: Schedule,
    *,
    workspace: Workspace,
    activation: str = "silu",
    is_interleaved: bool = False,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    apply_router_weight_on_input: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`fused_moe` over a schedule: its time follows the active experts, in one captured graph.

    out[m] = sum over rows r of token m: weights[r] * down(act(up(hidden[m])))

    Products and sums are float32; the weighted activations are rounded once, the output once.
    Nothing is allocated but `out`, where it is not given; nothing waits for the device.

    Args:
        hidden: [M, H], bfloat16 or float16 (float32 works, slowly).
        w13: [E, 2I, H]. w2: [E, H, I]. Dtype as hidden, or float8_e4m3fn with scales.
        schedule: of M rows; a row's experts are distinct.
        workspace: for these weights and M or more rows; what it holds does not matter.
        activation: "silu", "gelu" (tanh form) or "swiglu_clamped" (gpt-oss), gating.
        is_interleaved: gate and up rows of w13 alternate; else gate rows come first.
        w13_scale, w2_scale: float32, per 128 x 128 weights [E, N / 128, D / 128], per row [E, N] or
            per expert [E].
        w13_bias, w2_bias: [E, 2I], [E, H], added in float32.
        apply_router_weight_on_input: weigh the expert's input rather than its output.
        out: [M, H], dtype as hidden.
    """
    gate_up = Projection("w13", w13, w13_scale, w13_bias)
    down = Projection("w2", w2, w2_scale, w2_bias)
    check_arguments(hidden, gate_up, down, schedule, workspace, activation, out)

    plan = make_plan(workspace.layer, workspace.num_sms, *schedule.slots.shape)

    if plan.tiles.is_tma and is_interleaved:
        raise ValueError("is_interleaved: expected gate rows first with tiles by TMA, got True")
    if out is None:
        out = torch.empty_like(hidden)
    if not plan.num_rows:
        return out

    launch_gate_up(
        plan,
        hidden,
        gate_up,
        schedule,
        workspace,
        activation=activation,
        is_interleaved=is_interleaved,
        weighs_input=apply_router_weight_on_input,
    )
    launch_down = launch_down_concat if plan.tiles.is_concatenated else launch_down_per_expert
    weighs_bias = w2_bias is not None and not apply_router_weight_on_input
    launch_down(plan, down, schedule, workspace, out, schedule.weights if weighs_bias else None)
    return out


def launch_gate_up(
    plan: Plan,
    hidden: Tensor,
    gate_up: Projection,
    schedule: Schedule,
    workspace: Workspace,
    *,
    activation: str,
    is_interleaved: bool,
    weighs_input: bool,
) -> None:
    gate_up_kernel[(plan.num_gate_up_programs,)](
        hidden_ptr=hidden,
        w13_ptr=gate_up.weight,
        w13_tma=gate_up.descriptor(plan.tiles.gate_up) if plan.tiles.is_tma else None,
        w13_scale_ptr=gate_up.scale,
        w13_bias_ptr=gate_up.bias,
        **_active_experts(schedule),
        tokens_ptr=schedule.tokens,
        weights_ptr=schedule.weights,
        inner_ptr=workspace.inner,
        H=workspace.layer.hidden_size,
        I=workspace.layer.intermediate_size,
        E=workspace.layer.num_experts,
        ACTIVATION=activation,
        WEIGHS_INPUT=weighs_input,
        IS_INTERLEAVED=is_interleaved,
        SCALE_BLOCK=gate_up.scale_block,
        IS_CHUNKED=plan.is_chunked,
        **_options(plan.tiles.gate_up, plan),
    )


def launch_down_concat(
    plan: Plan,
    down: Projection,
    schedule: Schedule,
    workspace: Workspace,
    out: Tensor,
    bias_weights: Tensor | None,
) -> None:
    down_concat_kernel[(plan.num_down_blocks, plan.num_splits)](
        inner_ptr=workspace.inner,
        w2_ptr=down.weight,
        w2_tma=down.descriptor(plan.tiles.down) if plan.tiles.is_tma else None,
        w2_scale_ptr=down.scale,
        w2_bias_ptr=down.bias,
        **_active_experts(schedule),
        slots_ptr=schedule.slots,
        weights_ptr=bias_weights,
        partials_ptr=workspace.sums,
        arrivals_ptr=workspace.arrivals,
        out_ptr=out,
        num_rows=plan.num_rows,
        H=workspace.layer.hidden_size,
        I=workspace.layer.intermediate_size,
        K=plan.top_k,
        SCALE_BLOCK=down.scale_block,
        PREFETCH=plan.tiles.num_prefetched,
        **_options(plan.tiles.down, plan),
    )


def launch_down_per_expert(
    plan: Plan,
    down: Projection,
    schedule: Schedule,
    workspace: Workspace,
    out: Tensor,
    bias_weights: Tensor | None,
) -> None:
    down_kernel[(plan.num_down_programs,)](
        inner_ptr=workspace.inner,
        w2_ptr=down.weight,
        w2_tma=down.descriptor(plan.tiles.down) if plan.tiles.is_tma else None,
        w2_scale_ptr=down.scale,
        w2_bias_ptr=down.bias,
        **_active_experts(schedule),
        weights_ptr=bias_weights,
        products_ptr=workspace.sums,
        H=workspace.layer.hidden_size,
        I=workspace.layer.intermediate_size,
        E=workspace.layer.num_experts,
        SCALE_BLOCK=down.scale_block,
        **_options(plan.tiles.down, plan),
    )
    num_blocks = triton.cdiv(workspace.layer.hidden_size, COMBINE_COLUMNS)
    combine_kernel[(plan.num_rows, num_blocks)](
        products_ptr=workspace.sums,
        slots_ptr=schedule.slots,
        out_ptr=out,
        H=workspace.layer.hidden_size,
        K=plan.top_k,
        BN=COMBINE_COLUMNS,
        IS_PDL=plan.is_pdl,
        launch_pdl=plan.is_pdl,
    )


def _active_experts(schedule: Schedule) -> dict[str, Tensor]:
    return {
        "num_active_ptr": schedule.num_active,
        "experts_ptr": schedule.experts,
        "counts_ptr": schedule.counts,
        "offsets_ptr": schedule.offsets,
    }


def _options(tiles: GemmTiles, plan: Plan) -> dict[str, Any]:
    return {
        "BT": tiles.block_tokens,
        "BN": tiles.block_rows,
        "BK": tiles.block_depth,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        "IS_PDL": plan.is_pdl,
        "launch_pdl": plan.is_pdl,
    }


def check_arguments(
    hidden: Tensor,
    gate_up: Projection,
    down: Projection,
    schedule: Schedule,
    workspace: Workspace,
    activation: str,
    out: Tensor | None,
) -> None:
    """Raise ValueError for the first argument that does not fit; no tensor is read."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}; got {activation!r}"
        )
    layer = workspace.layer
    num_rows, top_k = schedule.slots.shape
    if num_rows > workspace.max_rows or top_k > workspace.top_k:
        raise ValueError(
            f"workspace: expected one for {num_rows} rows of {top_k} slots, "
            f"got {workspace.max_rows} rows of {workspace.top_k}"
        )
    num_experts, inner_size = layer.num_experts, layer.intermediate_size
    if len(schedule.experts) != num_experts:
        raise ValueError(
            f"schedule: expected one over the {num_experts} experts of w13, "
            f"got one over {len(schedule.experts)}"
        )
    _check("hidden", hidden, hidden, workspace.inner.dtype, (num_rows, layer.hidden_size))
    if out is not None:
        _check("out", out, hidden, hidden.dtype, tuple(hidden.shape))
    for projection, shape in (
        (gate_up, (num_experts, 2 * inner_size, layer.hidden_size)),
        (down, (num_experts, layer.hidden_size, inner_size)),
    ):
        name, scale = projection.name, projection.scale
        dtype = hidden.dtype if scale is None else torch.float8_e4m3fn
        _check(name, projection.weight, hidden, dtype, shape)
        if shape[1] * shape[2] >= MAX_ELEMENTS:
            raise ValueError(f"{name}: expected fewer than {MAX_ELEMENTS} elements per expert")
        if projection.bias is not None:
            bias = projection.bias
            _check(f"{name}_bias", bias, hidden, bias.dtype, shape[:2])
        if scale is not None:
            blocks = tuple(triton.cdiv(size, SCALE_BLOCK) for size in shape[1:])
            expected = (num_experts, *blocks) if scale.ndim == 3 else shape[: max(scale.ndim, 1)]
            _check(f"{name}_scale", scale, hidden, torch.float32, expected)


def _check(
    name: str, tensor: Tensor, like: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    if (
        tensor.dtype != dtype
        or tensor.shape != shape
        or tensor.device != like.device
        or not tensor.is_contiguous()
    ):
        raise ValueError(
            f"{name}: expected contiguous {dtype} {shape} on {like.device}, "
            f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            f"{'' if tensor.is_contiguous() else ', not contiguous'}"
        )
