"""The runner of a model's experts on a GPU: Lynx's kernels, or SGLang's behind Lynx's selection.

This is the answer before the weights are there; ``gpu.fused_runner`` asks every layer again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Hugging Face configuration names for the number of routed experts.
EXPERT_COUNT_NAMES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Coverage of Lynx's kernels, as they state it; not imported, so that a launcher needs no Triton.
MIN_ARCH, MIN_FP8_ARCH = 80, 89  # compute capability times ten
SCALE_BLOCK = 128  # of fp8 weights
FP8 = ("fp8", "w8a8_fp8", "modelopt_fp8")
# SGLang's runners that route inside their kernels, and a runner to name that takes expert ids.
ROUTING_RUNNERS = {
    "triton_kernel": "marlin",
    "flashinfer_trtllm": "flashinfer_trtllm_routed",
    "experimental_sgl_trtllm": "flashinfer_trtllm_routed",
    "flashinfer_mxfp4": "marlin",
}


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of a model: how many, and the format of their weights."""

    count: int  # per layer; 0 for a dense model
    quantization: str | None = None  # the operator's or the checkpoint's, as SGLang resolved it
    block: tuple[int, ...] | None = None  # of fp8 scales; None: per row or tensor
    is_fp4: bool = False  # fp4 experts in a checkpoint that is quantised otherwise

    @classmethod
    def of(cls, model_config: Any, quantization: str | None) -> Experts:
        """``model_config``: SGLang's. ``quantization``: of the server's arguments."""
        declared = declared_quantization(model_config.hf_config)
        method = getattr(model_config, "quantization", None) or quantization
        block = declared.get("weight_block_size")
        return cls(
            count=num_experts_of(model_config.hf_text_config),
            quantization=method or declared.get("quant_method"),
            block=None if block is None else tuple(block),
            is_fp4=bool(
                getattr(model_config, "is_fp4_experts", False)
                or getattr(model_config, "nvfp4_moe_meta", None)
            ),
        )

    def uncovered(self, arch: int) -> str | None:
        """The reason to leave them to SGLang's runner at this compute capability, or None."""
        if self.quantization is None:
            return None if arch >= MIN_ARCH else f"compute capability {arch / 10:.1f}"
        if self.quantization not in FP8:
            return f"{self.quantization} weights"
        if self.is_fp4:
            return "fp4 weights"
        if arch < MIN_FP8_ARCH:
            return f"compute capability {arch / 10:.1f} with fp8 weights"
        if self.block not in (None, (SCALE_BLOCK, SCALE_BLOCK)):
            return f"fp8 scales per {self.block} block, not {SCALE_BLOCK} x {SCALE_BLOCK}"
        return None


def num_experts_of(hf_config: Any) -> int:
    """Routed experts per layer of a Hugging Face configuration; 0 for a dense model."""
    for name in EXPERT_COUNT_NAMES:
        count = getattr(hf_config, name, None)
        if isinstance(count, int) and count > 1:
            return count
    return 0


def declared_quantization(hf_config: Any) -> dict[str, Any]:
    """The quantization that a checkpoint declares; empty where it declares none."""
    declared = getattr(hf_config, "quantization_config", None)
    if declared is None:
        return {}
    return dict(declared if isinstance(declared, dict) else declared.to_dict())


def routes_inside(runner: str | None, experts: Experts) -> str | None:
    """The reason to refuse this runner behind a selection, and others to name; None if it fits."""
    if runner not in ROUTING_RUNNERS or (runner == "flashinfer_mxfp4" and experts.is_fp4):
        return None
    return (
        f"--moe-runner-backend {runner} is not served: it routes inside its kernel, where nothing "
        f"can be selected. Add --moe-runner-backend {ROUTING_RUNNERS[runner]}, or one that the "
        "checkpoint's format takes."
    )


def widens(runner: str | None, experts: Experts) -> str | None:
    """The reason to refuse a runner that would widen the experts; None if it keeps their format."""
    if experts.quantization != "mxfp4" or runner not in (None, "auto", "triton"):
        return None
    return (
        f"--moe-runner-backend {runner or 'auto'} is not served with mxfp4 experts: SGLang widens "
        "them to bfloat16, to four times their memory. Add --moe-runner-backend marlin."
    )
