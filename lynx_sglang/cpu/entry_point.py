"""Entry point of the CPU platform, which is active on machines without an accelerator.

SGLang loads this module while it is itself being imported, so nothing here imports SGLang.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

logger = logging.getLogger(__name__)

ATTENTION_BACKEND = "torch_batched"
FAST_DTYPE = "float32"  # of the compiled operators


def activate() -> str | None:
    """Entry point ``sglang.srt.platforms``: the class path of the platform, or None.

    None if there is an accelerator, or if SGLANG_USE_CPU_ENGINE asks for SGLang's own CPU engine.
    """
    if torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available():
        return None
    if any(hasattr(torch, name) for name in ("npu", "musa")):
        return None
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    return "lynx_sglang.cpu.platform:CpuPlatform"


def register_defaults() -> None:
    """Choose device, dtype and attention where the operator chose none.

    The compiled operators are for float32; SGLang serves a float32 checkpoint in float16. Its CPU
    step comes before the platform's own defaults and would choose attention with AMX kernels.
    """
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    @register_resolution_hook("handle_deprecated_dp_attention")  # before the model's configuration
    def choose_device_and_dtype(server_args: Any, previous: Any) -> None:
        previous(server_args)
        view = resolving_view(server_args)
        if view.device not in (None, "cpu") or activate() is None:
            return
        if view.device is None:  # SGLang would ask the platform, and take its answer for a name
            declare_resolution(server_args, __name__, device="cpu")
        if view.dtype == "auto":
            declare_resolution(server_args, __name__, dtype=FAST_DTYPE)
            logger.info("CPU platform: serving in %s, its fast dtype; see --dtype", FAST_DTYPE)
        elif view.dtype not in (FAST_DTYPE, "float"):
            logger.warning(
                "CPU platform: --dtype %s runs without the compiled operators, which take %s",
                view.dtype,
                FAST_DTYPE,
            )

    @register_resolution_hook("handle_cpu_backends")
    def choose_attention(server_args: Any, previous: Any) -> None:
        view = resolving_view(server_args)
        if view.device == "cpu" and view.attention_backend is None:
            declare_resolution(server_args, __name__, attention_backend=ATTENTION_BACKEND)
        previous(server_args)
