"""Where the CPU platform is active: only on machines without an accelerator.

SGLang loads this module while it is itself being imported, so nothing here imports SGLang.
"""

from __future__ import annotations

import os
from typing import Any

import torch

ATTENTION_BACKEND = "torch_batched"


def activate() -> str | None:
    """Entry point ``sglang.srt.platforms``: the platform's class path, or None to stay out.

    None where an accelerator is present, or where SGLang's own CPU engine was asked for.
    """
    if torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available():
        return None
    if any(hasattr(torch, name) for name in ("npu", "musa")):
        return None
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    return "lynx_sglang.cpu.platform:CpuPlatform"


def register_defaults() -> None:
    """Choose the batched attention where the operator chose none.

    SGLang's CPU step comes before the platform's own defaults and would choose AMX kernels.
    """
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    @register_resolution_hook("handle_cpu_backends")
    def choose_attention(server_args: Any, previous: Any) -> None:
        view = resolving_view(server_args)
        if view.device == "cpu" and view.attention_backend is None:
            declare_resolution(server_args, __name__, attention_backend=ATTENTION_BACKEND)
        previous(server_args)
