"""Servers that Lynx can serve: checked once, on resolved arguments, with the reason if it cannot.

On a GPU SGLang resolves its arguments as if no runner had been named (``auto``), so that Lynx
changes none of its other choices. Then Lynx's kernels take SGLang's Triton runner where they cover
the experts' format; elsewhere SGLang's own choice stays, behind Lynx's selection.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from lynx_kernels import policies_for_triton
from lynx_kernels.device import arch_of
from lynx_sglang import calibration
from lynx_sglang.cpu import entry_point
from lynx_sglang.errors import UnsupportedError
from lynx_sglang.integration import features, flags, model_files
from lynx_sglang.integration.formats import Experts, routes_inside, widens
from lynx_sglang.loop import shadow
from lynx_sglang.settings import BACKEND, Settings
from lynx_sglang.sketches import SKETCHES_ON_GPU

logger = logging.getLogger(__name__)

FIRST_STEP = "handle_deprecated_dp_attention"
LAST_STEP = "validate_deepep_v2_dispatch_token_budget"


def register() -> None:
    """Check a server's arguments in SGLang's resolution: first and last of its steps."""
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    @register_resolution_hook(FIRST_STEP)
    def begin(server_args: Any, previous: Any) -> None:
        """Refuse what was asked for before SGLang looks for drafts or refuses it otherwise."""
        previous(server_args)
        if flags.published() is None:
            return
        view, is_cpu = resolving_view(server_args), entry_point.activate() is not None
        # Beside it, SGLang takes --speculative-algorithm away. SGLang 0.5.22 has no such option.
        if not getattr(view, "enable_return_aux_hidden_states", False):
            for reason in features.refusals(view, "cpu" if is_cpu else "cuda"):
                raise UnsupportedError(f"--moe-backend lynx: {reason}")
        if not is_cpu and view.moe_runner_backend == BACKEND:
            declare_resolution(server_args, __name__, moe_runner_backend="auto")

    @register_resolution_hook(LAST_STEP)
    def check(server_args: Any, previous: Any) -> None:
        previous(server_args)
        if (settings := flags.published()) is not None:
            admit(settings, server_args)


def admit(settings: Settings, server_args: Any) -> None:
    """Choose what runs the experts and refuse what cannot be served.

    Raises:
        UnsupportedError: the reason and what to do.
    """
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        model_config_of,
        resolving_view,
    )

    view, model_config = resolving_view(server_args), model_config_of(server_args)
    experts = Experts.of(model_config, view.quantization)
    is_ours = server_args.moe_runner_backend == BACKEND
    chosen: dict[str, Any] = {}
    if device_of(view) == "cuda" and is_ours and experts.uncovered(gpu_arch()) is None:
        chosen["moe_runner_backend"] = "triton"
        if view.moe_runner_backend not in ("auto", "triton"):
            logger.info(
                "lynx: SGLang chose the runner %s for these experts. Lynx's kernels read the "
                "weights of its triton, which runs all other steps. To keep %s behind lynx's "
                "selection, name it with --moe-runner-backend",
                *[view.moe_runner_backend] * 2,
            )
    architectures = getattr(model_config.hf_config, "architectures", None)
    if model_files.has_appended_shared_experts(architectures):
        # Their slots would be appended after selection, which does not cover them.
        chosen["disable_shared_experts_fusion"] = True
        logger.info("lynx: --disable-shared-experts-fusion is set for this model")
    if chosen:
        declare_resolution(server_args, __name__, **chosen)
        view = resolving_view(server_args)
    if reason := model_files.refusal(architectures):
        raise UnsupportedError(f"--moe-backend lynx: {reason}")
    if device_of(view) == "cpu" and (reason := model_files.refusal_on_cpu(architectures)):
        raise UnsupportedError(f"--moe-backend lynx: {reason}")
    if reason := refusal(settings, view, experts):
        raise UnsupportedError(f"--moe-backend lynx: {reason}")
    if settings.calibration is not None:
        measured = calibration.load(settings.calibration, settings.policy)
        if reason := measured.refusal(model_config.hf_text_config):
            raise UnsupportedError(reason)
        if measured.sketches is not None and device_of(view) == "cuda":
            raise UnsupportedError(SKETCHES_ON_GPU)
    if reason := pacing_refusal(settings, view, model_config):
        raise UnsupportedError(reason)
    if settings.shadowed_share and (reason := shadow_refusal(view, model_config)):
        raise UnsupportedError(f"--moe-backend lynx: {reason}")


def refusal(settings: Settings, args: Any, experts: Experts) -> str | None:
    """The reason to refuse a server with these resolved arguments, and a way out; None if it runs.

    ``args``: SGLang's, after resolution.
    """
    if experts.count == 0:
        return (
            f"{args.model_path} has no routed experts to share (a dense model). "
            "Serve it without --moe-backend lynx."
        )
    if reason := settings.excess(experts.count):
        return reason
    device = device_of(args)
    if device is None:
        return f"--device {args.device} is not served. Serve with --device cuda or cpu."
    if reason := next(features.refusals(args, device), None):
        return reason
    return cpu_refusal(args, experts) if device == "cpu" else gpu_refusal(settings, args, experts)


def pacing_refusal(settings: Settings, args: Any, model_config: Any) -> str | None:
    """The reason to refuse paced prefill on this server; None if it can, or pacing is off."""
    if settings.prefill_pacing == "off":
        return None
    reason = None
    if not args.chunked_prefill_size or args.chunked_prefill_size < 0:
        reason = "--chunked-prefill-size -1 prefills prompts whole"
    elif settings.prefill_pacing == "on":
        if not hasattr(args, "prefill_decode_interval_min_bs"):
            reason = (
                "this SGLang has no --prefill-decode-interval-min-bs, so that an empty batch would "
                "wait too; 0.5.23 has it"
            )
        elif args.tp_size > 1:
            reason = "its decisions do not travel to the other ranks of --tp-size yet"
        elif args.enable_mixed_chunk:
            reason = "with --enable-mixed-chunk decode rows use up a small chunk"
        elif model_config.is_hybrid_swa:
            reason = "sliding-window layers size their memory by one chunk size"
    if reason is None:
        return None
    return f"--lynx-prefill-pacing {settings.prefill_pacing} is not served: {reason}. Set it off."


def shadow_refusal(args: Any, model_config: Any) -> str | None:
    """The reason to refuse shadow passes on a server with these resolved arguments, or None."""
    device = device_of(args)
    if device is not None and (line := next(features.shadow_refusals(args, device), None)):
        return line
    if reason := shadow.refusal(model_config):
        return f"{features.SHADOWS} are not served with {args.model_path}: {reason}."
    return None


def device_of(args: Any) -> features.Device | None:
    name = str(args.device).partition(":")[0]
    return "cuda" if name == "cuda" else "cpu" if name == "cpu" else None


def cpu_refusal(args: Any, experts: Experts) -> str | None:
    if entry_point.activate() is None:
        return (
            "--device cpu is served by Lynx's CPU platform, which stays out where there is an "
            "accelerator. Hide it (CUDA_VISIBLE_DEVICES=) or remove --device."
        )
    if experts.quantization is not None:
        return (
            f"--quantization {experts.quantization} is not served on a CPU: its kernels are for "
            "GPUs. Remove it, or choose a checkpoint without quantization."
        )
    if args.moe_runner_backend != BACKEND:
        return (
            f"--moe-runner-backend {args.moe_runner_backend} is not served on a CPU: its kernels "
            "are for GPUs. Remove it."
        )
    return None


def gpu_refusal(settings: Settings, args: Any, experts: Experts) -> str | None:
    if torch.version.hip is not None:
        return "--device cuda on ROCm is not served: the kernels are for NVIDIA GPUs. Remove it."
    if settings.policy not in policies_for_triton():
        return (
            f"--lynx-policy {settings.policy} is for comparison on a CPU and has no GPU kernel. "
            f"Choose one of {', '.join(policies_for_triton())}."
        )
    runner = args.moe_runner_backend
    return routes_inside(runner, experts) or widens(runner, experts)


def gpu_arch() -> int:
    """Compute capability of this machine's GPU times ten."""
    return arch_of(torch.device("cuda"))
