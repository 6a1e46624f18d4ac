"""Servers that Lynx refuses at start, with the reason and what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.arg_groups import overrides, resolution_hooks
from sglang.srt.configs import Qwen3NextConfig
from sglang.srt.server_args import ServerArgs
from transformers import PretrainedConfig

from lynx_sglang.errors import UnsupportedError
from lynx_sglang.integration import compatibility, formats
from lynx_sglang.integration.compatibility import (
    FIRST_STEP,
    LAST_STEP,
    pacing_refusal,
    refusal,
    shadow_refusal,
)
from lynx_sglang.integration.formats import Experts, num_experts_of, routes_inside
from lynx_sglang.settings import TRANSPORT_VARIABLE, Settings


def arguments(device: str = "cpu", **changes: Any) -> ServerArgs:
    return ServerArgs(model_path="m", device=device, **{"moe_runner_backend": "lynx", **changes})


@pytest.fixture(autouse=True)
def _no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0"])
def test_a_plain_moe_server_is_served(device: str) -> None:
    assert refusal(Settings(), arguments(device), Experts(64)) is None


@pytest.mark.parametrize("tp_size", [1, 8])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tensor_and_expert_parallelism_are_served(device: str, tp_size: int) -> None:
    for ep_size in (1, tp_size):
        args = arguments(device, tp_size=tp_size, ep_size=ep_size)
        assert refusal(Settings(), args, Experts(64)) is None


def test_the_tables_reasons_are_the_checks() -> None:
    reason = refusal(Settings(), arguments("cuda", attn_dp_size=8), Experts(64))
    assert str(reason).startswith("--attn-dp-size 8 (or --dp-size with --enable-dp-attention)")


PLAIN = SimpleNamespace(hf_config=PretrainedConfig(), linear_attn_registry_result=None)
RECURRENT = SimpleNamespace(hf_config=Qwen3NextConfig(), linear_attn_registry_result=None)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shadow_passes_are_served_where_a_step_may_run_twice(device: str) -> None:
    assert shadow_refusal(arguments(device), PLAIN) is None
    assert "its recurrent layers" in str(shadow_refusal(arguments(device), RECURRENT))
    routed = arguments(device, enable_return_routed_experts=True)  # the last pass writes them
    assert shadow_refusal(routed, PLAIN) is None


def test_shadow_passes_are_refused_where_a_captured_graph_counts_both() -> None:
    changes = {"expert_distribution_recorder_mode": "stat"}
    reason = str(shadow_refusal(arguments("cuda", **changes), PLAIN))
    assert "--expert-distribution-recorder-mode stat is not served on a GPU" in reason
    assert shadow_refusal(arguments("cpu", **changes), PLAIN) is None


@pytest.mark.parametrize("settings", [Settings(shadow_share=0.1), Settings(max_quality_loss=0.01)])
def test_a_server_that_asks_for_refused_shadow_passes_stops(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, steps: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _, last = steps(None)
    recorder = {"expert_distribution_recorder_mode": "stat"}
    last(arguments("cuda", **recorder), lambda _args: None)
    monkeypatch.setenv(TRANSPORT_VARIABLE, settings.to_json())
    with pytest.raises(UnsupportedError, match="both passes"):
        last(arguments("cuda", **recorder), lambda _args: None)


@pytest.mark.parametrize("policy", ["random", "lynx-v3"])
def test_a_policy_without_a_gpu_kernel_is_refused_on_a_gpu(policy: str) -> None:
    reason = refusal(Settings(policy=policy), arguments("cuda"), Experts(64))
    assert f"--lynx-policy {policy}" in str(reason)
    assert "Choose one of lynx, full, topk," in str(reason)
    assert refusal(Settings(policy=policy), arguments("cpu"), Experts(64)) is None


def test_another_device_is_refused() -> None:
    assert "--device npu is not served" in str(refusal(Settings(), arguments("npu"), Experts(64)))


@pytest.mark.parametrize(
    ("changes", "is_hybrid", "text"),
    [
        ({"chunked_prefill_size": -1}, False, "--chunked-prefill-size -1"),
        ({"tp_size": 2}, False, "--tp-size"),
        ({"enable_mixed_chunk": True}, False, "--enable-mixed-chunk"),
        ({}, True, "sliding-window"),
    ],
)
def test_where_prefill_cannot_be_paced(changes: dict[str, Any], is_hybrid: bool, text: str) -> None:
    args = arguments(**{"chunked_prefill_size": 512, **changes})
    model = SimpleNamespace(is_hybrid_swa=is_hybrid)
    on, off = Settings(prefill_pacing="on"), Settings(prefill_pacing="off")
    assert text in str(pacing_refusal(on, args, model))
    assert pacing_refusal(off, args, model) is None
    advised = pacing_refusal(Settings(prefill_pacing="advise"), args, model)
    assert (advised is None) == (args.chunked_prefill_size > 0)


def test_prefill_is_paced_where_an_empty_batch_does_not_wait() -> None:
    on, model = Settings(prefill_pacing="on"), SimpleNamespace(is_hybrid_swa=False)
    assert pacing_refusal(on, arguments(chunked_prefill_size=512), model) is None
    older = SimpleNamespace(chunked_prefill_size=512, tp_size=1)  # SGLang 0.5.22
    assert "0.5.23 has it" in str(pacing_refusal(on, older, model))


def test_a_dense_model_is_refused() -> None:
    assert "dense" in str(refusal(Settings(), arguments(), Experts(0)))


def test_a_budget_above_the_models_experts_is_refused() -> None:
    assert "at most this model's 64 experts, got 65" in str(
        refusal(Settings(budget=65), arguments(), Experts(64))
    )


def test_a_cpu_runs_plain_weights_in_its_own_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    fp8 = refusal(Settings(), arguments(), Experts(64, "fp8"))
    assert "--quantization fp8 is not served on a CPU" in str(fp8)
    named = arguments(moe_runner_backend="triton")
    assert "--moe-runner-backend triton" in str(refusal(Settings(), named, Experts(64)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "CUDA_VISIBLE_DEVICES" in str(refusal(Settings(), arguments(), Experts(64)))


# ------------------------------------------------------------------ what runs the experts


@pytest.mark.parametrize(
    ("experts", "arch", "reason"),
    [
        (Experts(64), 90, None),
        (Experts(64), 80, None),
        (Experts(64), 75, "compute capability 7.5"),
        (Experts(64, "fp8", (128, 128)), 90, None),
        (Experts(64, "fp8"), 89, None),
        (Experts(64, "w8a8_fp8"), 90, None),
        (Experts(64, "modelopt_fp8"), 90, None),
        (Experts(64, "fp8", (128, 128)), 80, "with fp8 weights"),
        (Experts(64, "fp8", (64, 128)), 90, "(64, 128) block"),
        (Experts(64, "fp8", (128, 128), is_fp4=True), 90, "fp4 weights"),
        (Experts(64, "awq"), 90, "awq weights"),
        (Experts(64, "mxfp4"), 90, "mxfp4 weights"),
        (Experts(64, "modelopt_fp4"), 100, "modelopt_fp4 weights"),
        (Experts(64, "compressed-tensors"), 90, "compressed-tensors weights"),
    ],
)
def test_formats_that_lynx_kernels_cover(experts: Experts, arch: int, reason: str | None) -> None:
    given = experts.uncovered(arch)
    assert given is None if reason is None else reason in str(given)


def test_the_limits_are_the_kernels() -> None:
    from lynx_kernels.fused_moe import SCALE_BLOCK
    from lynx_sglang.gpu import fused_runner

    assert formats.SCALE_BLOCK == SCALE_BLOCK
    assert formats.MIN_ARCH == fused_runner.MIN_ARCH
    assert formats.MIN_FP8_ARCH == fused_runner.MIN_FP8_ARCH


@pytest.mark.parametrize(
    ("runner", "other"),
    [
        ("triton_kernel", "marlin"),
        ("flashinfer_trtllm", "flashinfer_trtllm_routed"),
        ("flashinfer_mxfp4", "marlin"),
    ],
)
def test_a_runner_that_routes_by_itself_is_refused_and_another_named(
    runner: str, other: str
) -> None:
    reason = str(routes_inside(runner, Experts(64, "mxfp4")))
    assert reason.startswith(f"--moe-runner-backend {runner} is not served")
    assert f"Add --moe-runner-backend {other}" in reason
    assert routes_inside(other, Experts(64, "mxfp4")) is None
    assert routes_inside("flashinfer_mxfp4", Experts(64, "fp8", is_fp4=True)) is None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The two registered steps, on SGLang's own record; the model's configuration is a stand-in."""

    def register(quantization: str | None) -> tuple[Any, Any]:
        hf_config = SimpleNamespace(num_experts=64, quantization_config=None)
        model_config = SimpleNamespace(
            hf_config=hf_config, hf_text_config=hf_config, quantization=quantization
        )
        monkeypatch.setattr(overrides, "model_config_of", lambda _args: model_config)
        monkeypatch.setattr(compatibility, "gpu_arch", lambda: 90)
        compatibility.register()
        hooks = resolution_hooks._HOOKS
        return hooks[FIRST_STEP][0], hooks[LAST_STEP][0]

    monkeypatch.setattr(resolution_hooks, "_HOOKS", {})
    monkeypatch.setenv(TRANSPORT_VARIABLE, Settings().to_json())
    return register


@pytest.mark.parametrize(
    ("device", "runner", "quantization", "meanwhile", "resolved"),
    [
        ("cuda", "lynx", None, "auto", "triton"),
        ("cuda", "lynx", "fp8", "auto", "triton"),
        ("cuda", "lynx", "w8a8_fp8", "auto", "triton"),
        ("cuda", "lynx", "compressed-tensors", "auto", "auto"),
        ("cuda", "lynx", "awq", "auto", "auto"),
        ("cuda", "flashinfer_cutlass", None, "flashinfer_cutlass", "flashinfer_cutlass"),
        ("cpu", "lynx", None, "lynx", "lynx"),
    ],
)
def test_what_runs_the_experts(
    device: str,
    runner: str,
    quantization: str | None,
    meanwhile: str,
    resolved: str,
    monkeypatch: pytest.MonkeyPatch,
    steps: Any,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    args = arguments(device, moe_runner_backend=runner)
    first, last = steps(quantization)
    first(args, lambda _args: None)
    assert overrides.resolving_view(args).moe_runner_backend == meanwhile
    last(args, lambda _args: None)
    assert overrides.resolving_view(args).moe_runner_backend == resolved
    assert args.moe_runner_backend == runner  # what the operator asked for stays known


def test_what_sglang_chose_stays_and_is_asked(monkeypatch: pytest.MonkeyPatch, steps: Any) -> None:
    """gpt-oss: SGLang's choice for MXFP4 routes by itself; no other is put in its place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = arguments("cuda")
    first, last = steps("mxfp4")
    first(args, lambda _args: None)
    overrides.declare_resolution(args, "model", moe_runner_backend="flashinfer_mxfp4")
    with pytest.raises(UnsupportedError, match="flashinfer_mxfp4 is not served: it routes inside"):
        last(args, lambda _args: None)


@pytest.mark.parametrize("runner", ["auto", "triton"])
def test_experts_are_never_widened(runner: str) -> None:
    args = arguments("cuda", moe_runner_backend=runner)
    line = str(refusal(Settings(), args, Experts(32, "mxfp4")))
    assert f"--moe-runner-backend {runner} is not served with mxfp4 experts" in line
    assert refusal(Settings(), args, Experts(32, "awq")) is None
    marlin = arguments("cuda", moe_runner_backend="marlin")
    assert refusal(Settings(), marlin, Experts(32, "mxfp4")) is None


@pytest.mark.parametrize("before", ["flashinfer_trtllm", "deep_gemm", "auto"])
def test_a_runner_that_gives_way_is_named_at_start(
    before: str, monkeypatch: pytest.MonkeyPatch, steps: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    caplog.set_level("INFO", "lynx_sglang")
    args = arguments("cuda", moe_runner_backend="lynx")
    first, last = steps("fp8")
    first(args, lambda _args: None)
    overrides.declare_resolution(args, "model", moe_runner_backend=before)
    last(args, lambda _args: None)
    assert overrides.resolving_view(args).moe_runner_backend == "triton"
    told = f"SGLang chose the runner {before} for these experts" in caplog.text
    assert told is (before != "auto")


# ------------------------------------------------------------------ models


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


def test_a_checkpoints_own_quantization_counts() -> None:
    declared = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    hf_config = SimpleNamespace(num_experts=8, quantization_config=declared)
    model_config = SimpleNamespace(hf_config=hf_config, hf_text_config=hf_config)
    assert Experts.of(model_config, None) == Experts(8, "fp8", (128, 128))
    assert Experts.of(model_config, "awq").quantization == "awq"
