"""The hooks of a server process: where the runtime meets scheduler, layers and server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from lynx_sglang import doors, ranks, routing, shadow, telemetry, tier
from lynx_sglang.plugin import hook_path
from lynx_sglang.runtime import Runtime
from lynx_sglang.settings import Settings


def install(settings: Settings) -> Runtime:
    """Make this process's runtime and hook it in."""
    if torch.cuda.is_available():
        from lynx_sglang.gpu_runtime import GpuRuntime

        runtime: Runtime = GpuRuntime(settings)
    else:
        runtime = Runtime(settings)
    around: dict[doors.Door, Callable[..., Any]] = {
        **runtime.runner_hooks(),
        doors.POST_PROCESS_TOPK: routing.post_process_topk(runtime),
        doors.RECEIVE: ranks.receive(runtime),
        doors.RUN_BATCH: runtime.run_batch,
        doors.FORWARD: shadow.forward(runtime),
    }
    after: dict[doors.Door, Callable[..., Any]] = {
        doors.STREAMER_CLASS: lambda base, _: tier.reporting_streamer(base, runtime.default_tier),
        doors.GET_STATE: telemetry.add_server_info(runtime),
        doors.UPDATE_HANDLERS: telemetry.add_update_handlers(runtime),
    }
    for door, hook in around.items():
        HookRegistry.register(hook_path(door), hook, HookType.AROUND)
    for door, hook in after.items():
        HookRegistry.register(hook_path(door), hook, HookType.AFTER)
    return runtime
