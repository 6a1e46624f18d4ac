"""The hooks of a server process: where the runtime meets scheduler, layers and server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from lynx_sglang import sglang_names
from lynx_sglang.integration.plugin import hook_path
from lynx_sglang.loop import ranks, routing, shadow, telemetry, tier
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.settings import Settings


def install(settings: Settings) -> Runtime:
    """Make this process's runtime and hook it in."""
    if torch.cuda.is_available():
        from lynx_sglang.gpu.runtime import GpuRuntime

        runtime: Runtime = GpuRuntime(settings)
    else:
        runtime = Runtime(settings)
    around: dict[sglang_names.Name, Callable[..., Any]] = {
        **runtime.runner_hooks(),
        sglang_names.POST_PROCESS_TOPK: routing.post_process_topk(runtime),
        sglang_names.RECEIVE: ranks.receive(runtime),
        sglang_names.RUN_BATCH: runtime.run_batch,
        sglang_names.FORWARD: shadow.forward(runtime),
    }
    after: dict[sglang_names.Name, Callable[..., Any]] = {
        sglang_names.STREAMER_CLASS: lambda base, _: tier.reporting_streamer(
            base, runtime.default_tier
        ),
        sglang_names.GET_STATE: telemetry.add_server_info(runtime),
        sglang_names.UPDATE_HANDLERS: telemetry.add_update_handlers(runtime),
    }
    for name, hook in around.items():
        HookRegistry.register(hook_path(name), hook, HookType.AROUND)
    for name, hook in after.items():
        HookRegistry.register(hook_path(name), hook, HookType.AFTER)
    return runtime
