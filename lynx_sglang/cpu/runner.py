"""The MoE runner core registered as ``lynx``: runs only the active experts, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.moe.moe_runner.base import DispatchMoeRunnerCore
from sglang.srt.layers.moe.moe_runner.runner import register_moe_runner_core
from sglang.srt.layers.moe.moe_runner.triton import TritonMoeQuantInfo
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.moe.utils import resolve_moe_runner_backend

from lynx_kernels import CpuExperts
from lynx_sglang.errors import UnsupportedError
from lynx_sglang.settings import BACKEND

Finish = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], None]


class LynxRunnerCore(DispatchMoeRunnerCore):
    """Runs one layer's experts on the ids after selection."""

    def __init__(self, config: Any, finish: Finish) -> None:
        """
        Args:
            finish: called with the configuration, hidden and router weights as the experts got
                them, and their output, which it may write.
        """
        super().__init__(config)
        self._finish = finish
        if reason := _unsupported(config):
            raise UnsupportedError(f"--moe-backend lynx: MoE layer {config.layer_id}: {reason}")
        self._experts: CpuExperts | None = None
        self._weights_at: tuple[int, int] | None = None  # addresses of the weights under the views

    @property
    def runner_backend(self) -> Any:
        return resolve_moe_runner_backend(BACKEND)

    def run_from_dispatch(
        self, dispatch_output: Any, quant_info: Any, runner_config: Any, hooks: Any = None
    ) -> Any:
        """hidden [M, H] through its experts; see ``lynx_kernels.fused_moe``."""
        weights_at = (quant_info.w13_weight.data_ptr(), quant_info.w2_weight.data_ptr())
        if self._experts is None or weights_at != self._weights_at:
            # The experts hold views: they see updates in place, and are made anew if weights move.
            self._weights_at = weights_at
            self._experts = CpuExperts(
                quant_info.w13_weight,
                quant_info.w2_weight,
                w13_bias=quant_info.b13,
                w2_bias=quant_info.b2,
                activation=runner_config.activation,
            )
        topk_output = dispatch_output.topk_output
        output = self._experts(
            dispatch_output.hidden_states,
            topk_output.topk_ids,
            topk_output.topk_weights,
            apply_router_weight_on_input=runner_config.apply_router_weight_on_input,
        )
        self._finish(runner_config, dispatch_output.hidden_states, topk_output.topk_weights, output)
        return StandardCombineInput(hidden_states=output)


def _unsupported(config: Any) -> str | None:
    if config.activation not in ("silu", "gelu") or not config.is_gated:
        return f"activation {config.activation} (gated: {config.is_gated}) is not covered"
    for name in ("gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit", "swiglu_limit"):
        if getattr(config, name) is not None:
            return f"{name} is not covered"
    if config.no_combine:
        return "no_combine is not covered"
    return None


def install(add_layer: Callable[[Any], None], finish: Finish) -> None:
    """Register the core.

    Args:
        add_layer: called with the configuration of each layer that is built.
        finish: see ``LynxRunnerCore``.
    """
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

    def factory(config: Any) -> LynxRunnerCore:
        core = LynxRunnerCore(config, finish)
        add_layer(config)
        return core

    def forward(method: Any, layer: Any, dispatch_output: Any) -> Any:
        return method.runner.run(
            dispatch_output,
            TritonMoeQuantInfo(
                w13_weight=layer.w13_weight,
                w2_weight=layer.w2_weight,
                b13=getattr(layer, "w13_weight_bias", None),
                b2=getattr(layer, "w2_weight_bias", None),
            ),
        )

    register_moe_runner_core(BACKEND, factory)
    BaseFusedOp.register_oot_forward(UnquantizedFusedMoEMethod, forward, "native")
