"""Which servers Lynx can serve: checked once, at start, with the reason when it cannot."""

from __future__ import annotations

from typing import Any

from lynx_sglang import flags, shadow
from lynx_sglang.errors import UnsupportedError
from lynx_sglang.settings import Settings

# Hugging Face configuration names for the number of routed experts.
EXPERT_COUNT_NAMES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def register() -> None:
    """Check a server's arguments during SGLang's resolution."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    @register_resolution_hook("handle_moe_kernel_config")
    def check(server_args: Any, previous: Any) -> None:
        previous(server_args)
        settings = flags.published()
        if settings is None:
            return
        view = resolving_view(server_args)
        model_config = model_config_of(server_args)
        if reason := refusal(settings, view, num_experts_of(model_config.hf_text_config)):
            raise UnsupportedError(f"--moe-backend lynx: {reason}")
        if settings.shadow_share and (reason := shadow.refusal(model_config)):
            raise UnsupportedError(
                f"--lynx-shadow-share must be 0 with {view.model_path}, got "
                f"{settings.shadow_share:g}: {reason}."
            )


def num_experts_of(hf_config: Any) -> int:
    """Routed experts per layer of a Hugging Face configuration; 0 for a dense model."""
    for name in EXPERT_COUNT_NAMES:
        count = getattr(hf_config, name, None)
        if isinstance(count, int) and count > 1:
            return count
    return 0


def refusal(settings: Settings, args: Any, num_experts: int) -> str | None:
    """Why a server with these SGLang arguments cannot run Lynx, and what to do; None if it can."""
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
    if not str(args.device).startswith("cpu"):
        return (
            f"device {args.device} is not served yet: this version runs on the CPU platform. "
            "Serve with --device cpu, or without --moe-backend lynx."
        )
    if args.moe_a2a_backend not in (None, "none"):
        return f"--moe-a2a-backend must be none, got {args.moe_a2a_backend}. Remove it."
    if args.enable_eplb or args.init_expert_location != "trivial":
        return "expert placement (--enable-eplb, --init-expert-location) is not served. Remove it."
    if args.quantization is not None:
        return f"--quantization {args.quantization} is not served on CPU. Remove it."
    if args.enable_lora or args.lora_paths:
        return "LoRA on MoE layers is not served. Remove --enable-lora and --lora-paths."
    for name in ("tp_size", "pp_size", "dp_size", "ep_size"):
        if getattr(args, name) > 1:
            flag = "--" + name.replace("_", "-")
            return (
                f"{flag} must be 1 (ranks do not share decisions yet), got {getattr(args, name)}."
            )
    if args.speculative_algorithm is not None:
        return (
            f"--speculative-algorithm {args.speculative_algorithm} is not served: verify steps "
            "are not selected yet. Remove it."
        )
    return None
