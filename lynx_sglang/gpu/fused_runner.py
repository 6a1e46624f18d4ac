"""Lynx's kernels in front of SGLang's Triton runner, layer by layer, on a GPU.

SGLang builds its own runner and weight layout. In decode steps, for which selection made a
schedule, the active experts run in ``lynx_kernels``. All other steps, prefill and large ones among
them, run in SGLang's.

fp8 experts take activations in the model's dtype. SGLang rounds activations to fp8 first, by a
scale per token or per checkpoint; Lynx's kernels do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lynx_kernels.device import arch_of
from lynx_kernels.fused_moe import (
    SCALE_BLOCK,
    SWIGLU_ALPHA,
    SWIGLU_LIMIT,
    Workspace,
    fused_moe_triton,
)
from lynx_sglang.gpu.device_path import MAX_SCHEDULED_ROWS, DevicePath

ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu"}  # SGLang's name on CUDA: lynx_kernels' name
HIDDEN_DTYPES = (torch.bfloat16, torch.float16)
MIN_ARCH, MIN_FP8_ARCH = 80, 89


class FusedRunner:
    """One layer's experts, in the place of the fused function that ``MoeRunner.run`` calls."""

    def __init__(self, layer: Any, original: Callable[..., Any]) -> None:
        """``layer``: SGLang's ``FusedMoE``. ``original``: SGLang's own fused function."""
        self._layer, self._original = layer, original
        self._is_spread = layer.moe_ep_size > 1
        if self._is_spread:
            # SGLang would map ids to this rank's experts in each step; its own runner alone reads
            # them.
            layer.dispatcher.skip_local_expert_mapping = True
        self._path: DevicePath | None = None
        self._workspace: Workspace | None = None

    def allocate(self, path: DevicePath, workspaces: dict[Any, Workspace]) -> int:
        """Allocate scratch before any capture; layers of one shape share it. The layer's id."""
        w13, w2 = self._layer.w13_weight, self._layer.w2_weight
        dtype = self._layer.moe_runner_config.params_dtype
        key = (w13.shape, w2.shape, w13.dtype, dtype)
        if key not in workspaces:
            rows = min(path.max_rows, MAX_SCHEDULED_ROWS)
            workspaces[key] = Workspace.allocate(
                w13, w2, max_rows=rows, top_k=path.sizes.num_slots, dtype=dtype
            )
        self._path, self._workspace = path, workspaces[key]
        layer_id: int = self._layer.layer_id
        return layer_id

    def __call__(self, dispatch_output: Any, quant_info: Any, runner_config: Any) -> Any:
        """hidden [M, H] through its experts; see ``lynx_kernels.fused_moe_triton``."""
        from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

        path, workspace = self._path, self._workspace
        schedule = None
        if path is not None:
            topk_weights = dispatch_output.topk_output.topk_weights
            schedule = path.take(self._layer.layer_id, topk_weights)
        if schedule is None or workspace is None:
            return self._original(self._as_sglang(dispatch_output), quant_info, runner_config)
        is_clamped = runner_config.gemm1_alpha is not None
        scales = [quant_info.w13_scale, quant_info.w2_scale]
        if quant_info.per_channel_quant:  # [E, N, 1]
            scales = [scale.squeeze(2) for scale in scales]
        output: Tensor = fused_moe_triton(
            dispatch_output.hidden_states,
            quant_info.w13_weight,
            quant_info.w2_weight,
            schedule,
            workspace=workspace,
            activation="swiglu_clamped" if is_clamped else ACTIVATIONS[runner_config.activation],
            is_interleaved=is_clamped or quant_info.fuse_swiglu_interleaved,
            w13_scale=scales[0],
            w2_scale=scales[1],
            w13_bias=quant_info.b13,
            w2_bias=quant_info.b2,
            apply_router_weight_on_input=runner_config.apply_router_weight_on_input,
            out=output_of(dispatch_output.hidden_states),
        )
        if runner_config.routed_scaling_factor not in (None, 1.0):
            output.mul_(runner_config.routed_scaling_factor)
        return StandardCombineInput(hidden_states=output)

    def _as_sglang(self, dispatch_output: Any) -> Any:
        """A routing as SGLang's dispatcher hands it to SGLang's runner."""
        topk = dispatch_output.topk_output
        if self._path is not None and self._path.fills_slots:
            topk = topk._replace(topk_ids=filled(topk.topk_ids))
        if self._is_spread:
            dispatcher = self._layer.dispatcher
            dispatcher.skip_local_expert_mapping = False
            try:
                topk = dispatcher.dispatch(dispatch_output.hidden_states, topk).topk_output
            finally:
                dispatcher.skip_local_expert_mapping = True
        return dispatch_output._replace(topk_output=topk)


def output_of(hidden: Tensor) -> Tensor:
    """Memory for a layer's output [M, H], where SGLang's all-reduce reads it fastest."""
    from sglang.srt.distributed.device_communicators.pynccl_allocator import use_symmetric_memory
    from sglang.srt.layers.dp_attention import is_allocation_symmetric
    from sglang.srt.runtime_context import get_parallel

    group = get_parallel().tp_group
    with use_symmetric_memory(group, disabled=not is_allocation_symmetric()):
        return torch.empty_like(hidden)


def filled(topk_ids: Tensor) -> Tensor:
    """Ids [M, K] without empty slots, for runners that take -1 for an expert.

    An empty slot has weight 0: it may name any expert that is there.
    """
    return topk_ids.clamp(min=0)


def builder_of(layer: Any) -> Any:
    """The object that built a layer's runner: its quant method, or the scheme beside it."""
    method, scheme = layer.quant_method, getattr(layer, "scheme", None)
    return method if scheme is None or getattr(method, "runner", None) is not None else scheme


def uncovered(method: Any, config: Any, device: torch.device) -> str | None:
    """The reason to leave a layer's experts to SGLang's runner; None if Lynx's kernels run them.

    ``method``: the object that built the runner.
    """
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

    arch, is_fp8 = arch_of(device), not isinstance(method, UnquantizedFusedMoEMethod)
    reason = uncovered_fp8(method, config) if is_fp8 else None
    if reason is not None:
        return reason
    if arch < (MIN_FP8_ARCH if is_fp8 else MIN_ARCH):
        return f"compute capability {arch / 10:.1f}"
    if config.params_dtype not in HIDDEN_DTYPES:
        return f"dtype {config.params_dtype}"
    if config.num_fused_shared_experts and config.num_local_experts != config.num_experts:
        return "fused shared experts, which each expert-parallel rank runs for its share"
    return uncovered_activation(config)


def uncovered_fp8(method: Any, config: Any) -> str | None:
    """Covered are fp8 weights with scales per 128 x 128 block, row or expert."""
    from sglang.srt.layers.quantization.compressed_tensors.schemes import (
        CompressedTensorsW8A8Fp8MoE,
    )
    from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod
    from sglang.srt.layers.quantization.modelopt_quant import ModelOptFp8MoEMethod
    from sglang.srt.layers.quantization.w8a8_fp8 import W8A8FP8MoEMethod

    if isinstance(method, W8A8FP8MoEMethod | ModelOptFp8MoEMethod):
        return None
    if not isinstance(method, Fp8MoEMethod | CompressedTensorsW8A8Fp8MoE):
        return f"weights of {type(method).__name__}"
    if isinstance(method, Fp8MoEMethod) and (method.use_mxfp8 or method.is_fp4_expert):
        return "MXFP8 and FP4 experts"
    if method.weight_block_size is None:
        return None
    if list(method.weight_block_size) != [SCALE_BLOCK, SCALE_BLOCK]:
        return f"fp8 scales per {method.weight_block_size} block, not {SCALE_BLOCK} x {SCALE_BLOCK}"
    if config.intermediate_size_per_partition % SCALE_BLOCK:
        return f"intermediate size {config.intermediate_size_per_partition} of fp8 experts"
    return None


def uncovered_activation(config: Any) -> str | None:
    if config.no_combine:
        return "no_combine"
    if config.activation not in ACTIVATIONS or not config.is_gated:
        return f"activation {config.activation} (gated: {config.is_gated})"
    if config.swiglu_limit is not None or config.gemm1_beta is not None:
        return "swiglu_limit and gemm1_beta"
    clamp = (config.gemm1_alpha, config.gemm1_clamp_limit)
    if clamp not in ((None, None), (SWIGLU_ALPHA, SWIGLU_LIMIT)):
        return f"gemm1_alpha and gemm1_clamp_limit {clamp}"
    if clamp != (None, None) and not (config.gate_up_interleaved and config.activation == "silu"):
        return "a clamped SwiGLU whose gate and up rows do not alternate"
    return None
