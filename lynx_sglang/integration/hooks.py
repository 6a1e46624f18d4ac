"""Every hook of a server process, and the SGLang name that each goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from lynx_sglang import sglang_names
from lynx_sglang.integration import experts, model_runner, routing, scheduler, state, streamer
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.settings import Settings

if TYPE_CHECKING:
    from lynx_sglang.gpu.runtime import GpuRuntime

Hooks = dict[sglang_names.Name, Callable[..., Any]]


def install(settings: Settings) -> Runtime:
    """Make this process's runtime and hook it in."""
    if torch.cuda.is_available():
        from lynx_sglang.gpu.runtime import GpuRuntime

        gpu_runtime = GpuRuntime(settings)
        runtime: Runtime = gpu_runtime
        around = gpu_hooks(gpu_runtime)
    else:
        from lynx_sglang.cpu import runner

        runtime = Runtime(settings)
        runner.install(runtime.add_layer)
        around = cpu_hooks()
    around |= {
        sglang_names.POST_PROCESS_TOPK: routing.post_process_topk(runtime),
        sglang_names.RECEIVE: scheduler.receive(runtime),
        sglang_names.RUN_BATCH: runtime.run_batch,
        sglang_names.FORWARD: model_runner.forward(runtime),
        sglang_names.CONTINUE: scheduler.continue_generation(runtime),
        sglang_names.SET_STATE: state.change_settings(runtime),
    }
    after: Hooks = {
        sglang_names.STREAMER_CLASS: streamer.get_output_streamer_class(runtime),
        sglang_names.GET_STATE: state.add_server_info(runtime),
        sglang_names.UPDATE_HANDLERS: state.add_update_handlers,
    }
    for name, hook in around.items():
        HookRegistry.register(name.hook_path, hook, HookType.AROUND)
    for name, hook in after.items():
        HookRegistry.register(name.hook_path, hook, HookType.AFTER)
    return runtime


def cpu_hooks() -> Hooks:
    """Hooks around functions of SGLang that only a CPU server needs."""
    return {sglang_names.CREATE_RUNNER: experts.create_moe_runner}


def gpu_hooks(runtime: GpuRuntime) -> Hooks:
    """Hooks around functions of SGLang that only a GPU server needs."""
    return {
        sglang_names.FUSED_MOE: experts.around_init(runtime.add_expert_layer),
        sglang_names.BIND_BACKEND: experts.bind_backend,
        sglang_names.CAPTURE: runtime.capture,
        sglang_names.PROCESS_RESULT: runtime.process_result,
    }
