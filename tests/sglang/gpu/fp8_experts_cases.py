"""fp8 experts as SGLang's own quant methods load them, run by Lynx's kernels, interpreted.

Run by test_gpu_path.py in a process of its own, since Triton reads TRITON_INTERPRET once. SGLang's
cast to fp8 is a CUDA kernel; torch's stands in for it.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.quantization import fp8, modelopt_quant, w8a8_fp8, w8a8_int8
from sglang.srt.layers.quantization.compressed_tensors import compressed_tensors
from sglang.srt.layers.quantization.compressed_tensors.schemes import (
    compressed_tensors_w8a8_fp8_moe as scheme,
)

from lynx_kernels import fused_moe_reference
from lynx_kernels.schedule import build_schedule_reference
from lynx_sglang.gpu import fused_runner
from lynx_sglang.gpu.device_path import DevicePath, Sizes
from lynx_sglang.gpu.expert_layers import ExpertLayers
from lynx_sglang.integration.experts import around_init

pytestmark = pytest.mark.usefixtures("one_rank")
E, K, H, INNER, M = 4, 2, 256, 128, 5


def compressed(weights: str, activations: str, *, is_dynamic: bool = True, **more: Any) -> Any:
    """A checkpoint's configuration as llm-compressor writes it."""
    part = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**part, "strategy": weights, "dynamic": False, **more},
        "input_activations": {**part, "strategy": activations, "dynamic": is_dynamic},
    }
    if activations == "group":
        group["input_activations"]["group_size"] = 128
    return compressed_tensors.CompressedTensorsConfig.from_config(
        {"format": "float-quantized", "ignore": [], "config_groups": {"experts": group}}
    )


FORMATS = {
    "block": lambda: fp8.Fp8Config(is_checkpoint_fp8_serialized=True, weight_block_size=[128, 128]),
    "tensor": lambda: fp8.Fp8Config(is_checkpoint_fp8_serialized=True),
    "tensor, static activations": lambda: fp8.Fp8Config(
        is_checkpoint_fp8_serialized=True, activation_scheme="static"
    ),
    "row": lambda: w8a8_fp8.W8A8Fp8Config(is_checkpoint_fp8_serialized=True),
    "modelopt": lambda: modelopt_quant.ModelOptFp8Config(is_checkpoint_fp8_serialized=True),
    "compressed, row": lambda: compressed("channel", "token"),
    "compressed, tensor": lambda: compressed("tensor", "tensor"),
    "compressed, static": lambda: compressed("tensor", "tensor", is_dynamic=False),
    "compressed, block": lambda: compressed("block", "group", block_structure=[128, 128]),
}


@pytest.fixture(autouse=True)
def _a_cast_without_a_gpu(cpu_for_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fp8, modelopt_quant, scheme):
        monkeypatch.setattr(module, "scaled_fp8_quant", cast)


def cast(wide: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (wide / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale


def built(layers: ExpertLayers, quant_config: Any, dtype: torch.dtype) -> Any:
    """A layer as the server builds it, ``layers`` told of it; nothing loaded."""
    layer = object.__new__(FusedMoE)
    around_init(layers.add)(
        FusedMoE.__init__,
        layer,
        num_experts=E,
        hidden_size=H,
        intermediate_size=INNER,
        layer_id=0,
        top_k=K,
        params_dtype=dtype,
        quant_config=quant_config,
        prefix="model.layers.0.mlp.experts",
    )
    return layer


def layer_of(layers: ExpertLayers, quant_config: Any) -> Any:
    """The same with its checkpoint loaded."""
    layer = built(layers, quant_config, torch.float32)
    rng = torch.Generator().manual_seed(0)
    for name, parameter in layer.named_parameters():
        if name.endswith("weight"):
            parameter.data = torch.randn(parameter.shape, generator=rng).to(parameter.dtype)
        elif "weight_scale" in name:
            parameter.data.uniform_(0.05, 0.2, generator=rng)
        else:  # of activations
            parameter.data.fill_(1e-3)  # SGLang would clip activations at 448 times this
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def wide(layer: Any, name: str) -> torch.Tensor:
    """A layer's weights [E, N, D], dequantised."""
    weights = getattr(layer, name).float()
    scale = getattr(layer, f"{name}_scale", None)
    if scale is None:
        scale = getattr(layer, f"{name}_scale_inv")
    if scale.ndim == 3 and scale.shape[1:] != (weights.shape[1], 1):
        scale = scale.repeat_interleave(128, 1).repeat_interleave(128, 2)
    return weights * scale.reshape(E, -1, scale.shape[2] if scale.ndim == 3 else 1)


def run(layer: Any, layers: ExpertLayers) -> tuple[torch.Tensor, torch.Tensor]:
    """A decode step's experts as the server runs them, and the same in float32."""
    path = DevicePath(Sizes([0], E, 0, K), floor=1, policy="lynx", device="cpu", max_rows=M)
    layers.allocate(path)
    rng = torch.Generator().manual_seed(1)
    hidden, logits = torch.randn(M, H, generator=rng), torch.randn(M, E, generator=rng)
    weights, ids = logits.softmax(-1).topk(K)
    path.hand_over(0, build_schedule_reference(ids, weights, E), weights)
    dispatched = layer.dispatcher.dispatch(hidden, StandardTopKOutput(weights, ids, logits))
    got = layer.quant_method.apply(layer, dispatched).hidden_states
    w13, w2 = wide(layer, "w13_weight"), wide(layer, "w2_weight")
    return got, fused_moe_reference(hidden, w13, w2, ids, weights)


@pytest.mark.parametrize("name", FORMATS)
def test_experts_are_the_checkpoints_times_unrounded_activations(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lynx_sglang")
    layers = ExpertLayers()
    got, expected = run(layer_of(layers, FORMATS[name]()), layers)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert "lynx's kernels run the experts of 1 layers" in caplog.text


def test_other_weights_stay_with_sglangs_triton_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lynx_sglang")
    layers = ExpertLayers()
    layer = built(layers, w8a8_int8.W8A8Int8Config(), torch.bfloat16)
    assert not isinstance(layer.quant_method.runner.fused_func, fused_runner.FusedRunner)
    layers.allocate(DevicePath(Sizes([0], E, 0, K), floor=1, policy="lynx", device="cpu"))
    assert "1 layers with triton: weights of W8A8Int8MoEMethod" in caplog.text
