"""Servers that Lynx refuses at start, with the reason and what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.arg_groups import overrides, resolution_hooks
from sglang.srt.server_args import ServerArgs

from lynx_sglang.integration import compatibility
from lynx_sglang.integration.compatibility import (
    NOT_PLACED,
    NOT_SPREAD,
    NOT_WITH_GPU,
    SCATTERED,
    num_experts_of,
    quantization_of,
    refusal,
)
from lynx_sglang.settings import TRANSPORT_VARIABLE, Settings


def arguments(**changes: Any) -> SimpleNamespace:
    served = {
        "model_path": "m",
        "device": "cpu",
        "moe_a2a_backend": "none",
        "init_expert_location": "trivial",
        "quantization": None,
        "enable_lora": None,
        "lora_paths": None,
        "tp_size": 1,
        "ep_size": 1,
        **dict.fromkeys(NOT_PLACED),
        **dict.fromkeys(NOT_SPREAD, 1),
        **dict.fromkeys(SCATTERED, False),
        "speculative_algorithm": None,
        "moe_runner_backend": "lynx",
        "disaggregation_mode": "null",
        **dict.fromkeys(NOT_WITH_GPU),
    }
    return SimpleNamespace(**{**served, **changes})


@pytest.fixture(autouse=True)
def _no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plain_moe_server_is_served(device: str) -> None:
    assert refusal(Settings(), arguments(device=device), 64) is None


@pytest.mark.parametrize(
    ("settings", "changes", "quantization", "text"),
    [
        (Settings(shadow_share=0.1), {}, None, "--lynx-shadow-share"),
        (Settings(max_quality_loss=0.01), {}, None, "--lynx-max-quality-loss"),
        (Settings(policy="random"), {}, None, "--lynx-policy random"),
        (Settings(policy="lynx-v3"), {}, None, "Choose one of lynx, full, topk,"),
        (Settings(), {"enable_mixed_chunk": True}, None, "--enable-mixed-chunk is not served"),
        (Settings(), {"kt_weight_path": "/w"}, None, "--kt-weight-path is not served"),
        (Settings(), {"disaggregation_mode": "decode"}, None, "must be null, got decode"),
    ],
)
def test_what_a_gpu_does_not_serve_is_named(
    settings: Settings, changes: dict[str, Any], quantization: str | None, text: str
) -> None:
    reason = refusal(settings, arguments(device="cuda", **changes), 64, quantization)
    assert text in str(reason)


@pytest.mark.parametrize("quantization", [None, "fp8", "awq"])
def test_quantized_experts_are_served_on_a_gpu(quantization: str | None) -> None:
    assert refusal(Settings(), arguments(device="cuda"), 64, quantization) is None


@pytest.mark.parametrize(
    ("device", "runner", "quantization", "resolved"),
    [
        ("cuda", "lynx", None, "triton"),
        ("cuda", "lynx", "fp8", "triton"),
        ("cuda", "lynx", "w8a8_fp8", "triton"),
        ("cuda", "lynx", "compressed-tensors", "auto"),
        ("cuda", "lynx", "awq", "auto"),
        ("cuda", "flashinfer_cutlass", None, "flashinfer_cutlass"),
        ("cpu", "lynx", None, "lynx"),
    ],
)
def test_what_runs_the_experts(
    device: str,
    runner: str,
    quantization: str | None,
    resolved: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resolution hook on SGLang's own record; the model's configuration is a stand-in."""
    hf_config = SimpleNamespace(num_experts=64, quantization_config=None)
    model_config = SimpleNamespace(hf_config=hf_config, hf_text_config=hf_config)
    monkeypatch.setattr(resolution_hooks, "_HOOKS", {})
    monkeypatch.setattr(overrides, "model_config_of", lambda _args: model_config)
    monkeypatch.setenv(TRANSPORT_VARIABLE, Settings().to_json())
    args = ServerArgs(
        model_path="m", device=device, moe_runner_backend=runner, quantization=quantization
    )
    compatibility.register()
    (hook,) = resolution_hooks._HOOKS["handle_moe_kernel_config"]
    hook(args, lambda _args: None)
    assert overrides.resolving_view(args).moe_runner_backend == resolved
    assert args.moe_runner_backend == runner  # what the operator asked for stays known


def test_a_cpu_runs_plain_weights_in_its_own_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--quantization fp8" in str(refusal(Settings(), arguments(), 64, "fp8"))
    named = arguments(moe_runner_backend="triton")
    assert "--moe-runner-backend triton" in str(refusal(Settings(), named, 64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "CUDA_VISIBLE_DEVICES" in str(refusal(Settings(), arguments(), 64))


def test_a_checkpoints_own_quantization_counts() -> None:
    config = SimpleNamespace(quantization_config={"quant_method": "awq", "bits": 4})
    assert quantization_of(config) == "awq"
    assert quantization_of(SimpleNamespace()) is None


def test_the_refused_options_are_sglangs() -> None:
    refused = {*NOT_WITH_GPU, *NOT_SPREAD, *NOT_PLACED, *SCATTERED}
    assert refused <= set(ServerArgs.__struct_fields__)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tensor_and_expert_parallelism_are_served_and_no_other(device: str) -> None:
    for ep_size in (1, 2, 8):
        served = arguments(device=device, tp_size=8, ep_size=ep_size)
        assert refusal(Settings(), served, 64) is None
    for name in NOT_SPREAD:
        reason = refusal(Settings(), arguments(device=device, tp_size=8, **{name: 2}), 64)
        assert f"--{name.replace('_', '-')} must be 1, got 2" in str(reason)
    for name in SCATTERED:
        reason = refusal(Settings(), arguments(device=device, tp_size=8, **{name: True}), 64)
        assert f"--{name.replace('_', '-')} is not served" in str(reason)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "npu"}, "device npu"),
        ({"moe_a2a_backend": "deepep"}, "--moe-a2a-backend must be none, got deepep"),
        ({"enable_eplb": True}, "--enable-eplb is not served"),
        ({"ep_num_redundant_experts": 8}, "--ep-num-redundant-experts is not served"),
        ({"ep_dispatch_algorithm": "fake"}, "--ep-dispatch-algorithm is not served"),
        ({"elastic_ep_backend": "nixl"}, "--elastic-ep-backend is not served"),
        ({"init_expert_location": "x.pt"}, "--init-expert-location must be trivial, got x.pt"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"speculative_algorithm": "EAGLE"}, "--speculative-algorithm EAGLE"),
    ],
)
def test_what_is_not_served_is_named(changes: dict[str, Any], text: str) -> None:
    reason = refusal(Settings(), arguments(**changes), 64)
    assert reason is not None
    assert text in reason


def test_a_dense_model_is_refused() -> None:
    assert "dense" in str(refusal(Settings(), arguments(), 0))


def test_a_budget_above_the_models_experts_is_refused() -> None:
    assert "at most this model's 64 experts, got 65" in str(
        refusal(Settings(budget=65), arguments(), 64)
    )


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ({"num_experts": 64}, 64),
        ({"n_routed_experts": 160}, 160),
        ({"num_local_experts": 8}, 8),
        ({"num_experts": None}, 0),
        ({}, 0),
    ],
)
def test_expert_counts_by_their_published_names(names: dict[str, Any], count: int) -> None:
    assert num_experts_of(SimpleNamespace(**names)) == count
