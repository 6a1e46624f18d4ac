"""Which servers Lynx can serve: checked once, at start, with the reason when it cannot."""

from __future__ import annotations

from typing import Any

import torch

from lynx_kernels import policies_for_triton
from lynx_sglang import calibration
from lynx_sglang.cpu import entry_point
from lynx_sglang.errors import UnsupportedError
from lynx_sglang.integration import flags
from lynx_sglang.loop import shadow
from lynx_sglang.settings import BACKEND, Settings

# Hugging Face configuration names for the number of routed experts.
EXPERT_COUNT_NAMES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# SGLang options that a GPU server cannot have beside Lynx, and why.
NOT_WITH_GPU = {
    "enable_torch_compile": "selection is captured in CUDA graphs, not compiled",
    "enable_mixed_chunk": "decode rows that share a batch with prefill are not selected on a GPU",
    "enable_two_batch_overlap": "both halves of a batch would write the same buffers",
    "enable_single_batch_overlap": "a layer's parts would run beside each other",
    "enable_pdmux": "prefill and decode would run at the same time",
    "enable_paged_experts": "experts that are not in memory cannot be scheduled",
    "enable_waterfill": "it rewrites the routing after selection",
    "kt_weight_path": "experts on the CPU cannot be scheduled",
    "dllm_algorithm": "its steps are not decode steps",
}
# Ways to spread a model that give ranks other rows or layers. Those of tensor parallelism route the
# same rows, whether they have slices of all experts or, with --ep-size, some of them.
NOT_SPREAD = (
    "pp_size",
    "dp_size",
    "attn_cp_size",
    "moe_dp_size",
    "dcp_size",
    "dwdp_size",
)
SCATTERED = ("enable_attn_tp_input_scattered", "enable_layernorm_sp")  # each rank has other rows
# Expert placement beyond the trivial one: experts get other ids after selection.
NOT_PLACED = (
    "enable_eplb",
    "ep_num_redundant_experts",
    "ep_dispatch_algorithm",
    "elastic_ep_backend",
)
SHADOWS = "shadow passes (--lynx-shadow-share, --lynx-max-quality-loss)"
# Quantizations whose experts Lynx's kernels may run. compressed-tensors has others, too: there
# SGLang is left to choose, and chooses Triton for those that they run.
COVERED = (None, "fp8", "w8a8_fp8", "modelopt_fp8")


def register() -> None:
    """Check a server's arguments during SGLang's resolution."""
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        model_config_of,
        resolving_view,
    )
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    @register_resolution_hook("handle_moe_kernel_config")
    def check(server_args: Any, previous: Any) -> None:
        settings = flags.published()
        if settings is None:
            previous(server_args)
            return
        view = resolving_view(server_args)
        model_config = model_config_of(server_args)
        num_experts = num_experts_of(model_config.hf_text_config)
        quantization = view.quantization or quantization_of(model_config.hf_config)
        if str(view.device).startswith("cuda") and view.moe_runner_backend == BACKEND:
            # Lynx's kernels stand in front of SGLang's Triton runner; other weights are SGLang's.
            runner = "triton" if quantization in COVERED else "auto"
            declare_resolution(server_args, __name__, moe_runner_backend=runner)
        previous(server_args)
        view = resolving_view(server_args)
        if reason := refusal(settings, view, num_experts, quantization):
            raise UnsupportedError(f"--moe-backend lynx: {reason}")
        if settings.calibration is not None:
            measured = calibration.load(settings.calibration, settings.policy)
            if reason := measured.refusal(model_config.hf_text_config):
                raise UnsupportedError(reason)
        if settings.shadowed_share and (reason := shadow.refusal(model_config)):
            raise UnsupportedError(f"{SHADOWS} are not served with {view.model_path}: {reason}.")


def num_experts_of(hf_config: Any) -> int:
    """Routed experts per layer of a Hugging Face configuration; 0 for a dense model."""
    for name in EXPERT_COUNT_NAMES:
        count = getattr(hf_config, name, None)
        if isinstance(count, int) and count > 1:
            return count
    return 0


def quantization_of(hf_config: Any) -> str | None:
    """The quantization that a checkpoint declares."""
    declared = getattr(hf_config, "quantization_config", None)
    return None if declared is None else str(dict(declared).get("quant_method"))


def refusal(
    settings: Settings, args: Any, num_experts: int, quantization: str | None = None
) -> str | None:
    """Why a server with these SGLang arguments cannot run Lynx, and what to do; None if it can.

    ``quantization``: the operator's or the checkpoint's.
    """
    if num_experts == 0:
        return (
            f"{args.model_path} has no routed experts to share (a dense model). "
            "Serve it without --moe-backend lynx."
        )
    if isinstance(settings.budget, int) and settings.budget > num_experts:
        return (
            f"--lynx-budget takes at most this model's {num_experts} experts, "
            f"got {settings.budget}. Use full for no cap."
        )
    if args.moe_a2a_backend not in (None, "none"):
        return (
            f"--moe-a2a-backend must be none, got {args.moe_a2a_backend}: each rank "
            "would select for rows of its own, without the others'. Remove it."
        )
    if args.init_expert_location != "trivial":
        return (
            f"--init-expert-location must be trivial, got {args.init_expert_location}. Remove it."
        )
    for name in NOT_PLACED:
        if getattr(args, name):
            return f"{flag_of(name)} is not served: experts keep their places and ids. Remove it."
    if args.enable_lora or args.lora_paths:
        return "LoRA on MoE layers is not served. Remove --enable-lora and --lora-paths."
    for name in NOT_SPREAD:
        if getattr(args, name) > 1:
            return (
                f"{flag_of(name)} must be 1, got {getattr(args, name)}: only the ranks of "
                "tensor and expert parallelism (--tp-size, --ep-size) share decisions. Remove it."
            )
    for name in SCATTERED:
        if getattr(args, name):
            return f"{flag_of(name)} is not served: ranks would route different rows. Remove it."
    if args.speculative_algorithm is not None:
        return (
            f"--speculative-algorithm {args.speculative_algorithm} is not served: verify steps "
            "are not selected yet. Remove it."
        )
    if str(args.device).startswith("cpu"):
        return cpu_refusal(args, quantization)
    if str(args.device).startswith("cuda"):
        return gpu_refusal(settings, args)
    return f"device {args.device} is not served. Serve with --device cuda or cpu."


def cpu_refusal(args: Any, quantization: str | None) -> str | None:
    if entry_point.activate() is None:
        return (
            "--device cpu is served by Lynx's CPU platform, which stays out where there is an "
            "accelerator. Hide it (CUDA_VISIBLE_DEVICES=) or remove --device."
        )
    if quantization is not None:
        return f"--quantization {quantization} is not served on CPU. Remove it."
    if args.moe_runner_backend != BACKEND:
        return f"--moe-runner-backend {args.moe_runner_backend} does not run on CPU. Remove it."
    return None


def gpu_refusal(settings: Settings, args: Any) -> str | None:
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA GPUs, and this torch is built for ROCm."
    if settings.policy not in policies_for_triton():
        return (
            f"--lynx-policy {settings.policy} is for comparison on a CPU and has no GPU kernel. "
            f"Choose one of {', '.join(policies_for_triton())}."
        )
    if settings.shadowed_share:
        return f"{SHADOWS} are not served on a GPU: captured steps do not run twice."
    for name, reason in NOT_WITH_GPU.items():
        if getattr(args, name):
            return f"{flag_of(name)} is not served: {reason}. Remove it."
    if args.disaggregation_mode != "null":
        return f"--disaggregation-mode must be null, got {args.disaggregation_mode}. Remove it."
    return None


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")
