"""Every hook of a server process, and the SGLang name that each goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from lynx_sglang import sglang_names
from lynx_sglang.integration import experts, model_runner, routing, scheduler, state, streamer
from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.settings import Settings

if TYPE_CHECKING:
    from lynx_sglang.gpu.runtime import GpuBuilder

Hooks = dict[sglang_names.Name, Callable[..., Any]]


def install(settings: Settings) -> None:
    """Hook in what builds this process's runtime, and what calls it."""
    # The form that is not used is not imported: a GPU machine may lack numba.
    if torch.cuda.is_available():
        from lynx_sglang.gpu.runtime import GpuBuilder

        gpu = GpuBuilder(settings)
        builder: Builder[Runtime] = gpu
        around = gpu_hooks(gpu)
    else:
        from lynx_sglang.cpu import runner
        from lynx_sglang.cpu.runtime import CpuBuilder

        cpu = CpuBuilder(settings)
        builder = cpu
        runner.install(cpu.add_layer, cpu.finish_layer)
        around = cpu_hooks()
    pauses = scheduler.Pauses(builder)
    on_both: Hooks = {
        sglang_names.TOPK_LAYER: experts.topk_init(builder.add_router),
        sglang_names.POST_PROCESS_TOPK: routing.post_process_topk(builder),
        sglang_names.RECEIVE: scheduler.receive(builder),
        sglang_names.RUN_BATCH: scheduler.run_batch(builder),
        sglang_names.FORWARD: model_runner.forward(builder),
        sglang_names.PAUSE: pauses.pause_generation,
        sglang_names.CONTINUE: pauses.continue_generation,
        sglang_names.SET_STATE: state.change_settings(builder),
    }
    around |= on_both
    after: Hooks = {
        sglang_names.STREAMER_CLASS: streamer.get_output_streamer_class(builder),
        sglang_names.GET_STATE: state.add_server_info(builder),
        sglang_names.UPDATE_HANDLERS: state.add_update_handlers,
        sglang_names.IDLE: scheduler.note_idle(builder),
    }
    present = sglang_names.names_of(sglang_names.sglang_version())
    for hooks, kind in ((around, HookType.AROUND), (after, HookType.AFTER)):
        for name, hook in hooks.items():
            if name in present:
                HookRegistry.register(name.hook_path, hook, kind)


def cpu_hooks() -> Hooks:
    """Hooks around functions of SGLang that only a CPU server needs."""
    return {sglang_names.CREATE_RUNNER: experts.create_moe_runner}


def gpu_hooks(builder: GpuBuilder) -> Hooks:
    """Hooks around functions of SGLang that only a GPU server needs."""
    return {
        sglang_names.FUSED_MOE: experts.around_init(builder.add_expert_layer),
        sglang_names.BIND_BACKEND: experts.bind_backend,
        sglang_names.TOPK_FORWARD: experts.topk_forward,
        sglang_names.CAPTURE: model_runner.capture(builder),
        sglang_names.CAPTURE_PREFILL: model_runner.capture_prefill(builder),
        sglang_names.PROCESS_RESULT: scheduler.process_result(builder),
    }
