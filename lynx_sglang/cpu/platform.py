"""An SGLang platform for machines without an accelerator.

SGLang's own CPU engine needs an AMX build of its kernels. This out-of-tree platform runs torch
operators on any CPU, so that the same server, flags and controller serve where a model is
developed, tested and demonstrated. It serves plain SGLang and Lynx.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import psutil
import torch
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from lynx_sglang.cpu.entry_point import ATTENTION_BACKEND

CORES_VARIABLE = "SGLANG_CPU_OMP_THREADS_BIND"  # cores of each rank, separated by |
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def _keep_freed_memory() -> None:
    """Keep freed blocks in the process: the first touch of a fresh page is slow."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc only
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the maximum that every glibc accepts
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def share_cores(ranks: int) -> None:
    """Set the cores of each rank; SGLang requires them where ranks outnumber NUMA nodes.

    Only its AMX kernels bind to them. Here the system schedules, and ``init_backend`` divides the
    threads by the number of entries.
    """
    cores = sorted(os.sched_getaffinity(0))
    names = [str(cores[rank % len(cores)]) for rank in range(ranks)]
    os.environ.setdefault(CORES_VARIABLE, "|".join(names))


class CpuPlatform(SRTPlatform):
    """Torch operators on CPU: native dispatch, gloo, batched decode attention."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_default_attention_backend(self) -> str:
        return ATTENTION_BACKEND

    def get_dispatch_key_name(self) -> str:
        return "native"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Switch overlapped scheduling off: the host runs the steps, and overlap delays tokens."""
        server_args.disable_overlap_schedule = True
        ranks = server_args.dp_size * server_args.tp_size * server_args.pp_size
        if ranks > 1:
            share_cores(ranks)

    def init_backend(self) -> None:
        """Register the attention backend and operators; SGLang calls it once in each worker."""
        from sglang.srt.layers.attention.attention_registry import (
            ATTENTION_BACKENDS,
            register_attention_backend,
        )

        from lynx_sglang.cpu import memory, operators, recorder, timer
        from lynx_sglang.cpu.attention import BatchedDecodeAttention

        if ATTENTION_BACKEND not in ATTENTION_BACKENDS:
            register_attention_backend(ATTENTION_BACKEND)(BatchedDecodeAttention)
        operators.install(self.get_dispatch_key_name())
        timer.install()
        memory.install()
        recorder.install()
        _keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            # Leave one core to SGLang's other processes: a thread that waits for a core delays the
            # whole parallel region, in every operator of a step.
            ranks = len(os.environ.get(CORES_VARIABLE, "").split("|"))
            torch.set_num_threads(max(1, (len(os.sched_getaffinity(0)) - 1) // ranks))

    def get_device(self, device_id: int = 0) -> torch.device:
        return torch.device("cpu")

    def set_device(self, device: torch.device) -> None:
        """There is one CPU device."""

    def get_device_name(self, device_id: int = 0) -> str:
        return "cpu"

    def get_device_total_memory(self, device_id: int = 0) -> int:
        return int(psutil.virtual_memory().total)

    def get_current_memory_usage(self, device: torch.device | None = None) -> float:
        memory = psutil.virtual_memory()
        return float(memory.total - memory.available)

    def get_available_memory(self, device_id: int = 0) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)

    def get_torch_distributed_backend_str(self) -> str:
        return "gloo"

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"  # what ``/start_profile`` records

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU
