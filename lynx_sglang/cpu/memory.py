"""Free memory of the machine as this process alone changes it.

SGLang reads it before and after it loads the weights and takes the difference for theirs. On a
shared machine another process's growth would count as weights, and the server might not start.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil


class FreeMemory:
    """Free memory at the first call, less the growth of this process since, in bytes."""

    def __init__(self, measure: Callable[[], int], taken: Callable[[], int]) -> None:
        """``measure``: free memory of the machine. ``taken``: memory of this process alone."""
        self._measure, self._taken = measure, taken
        self._first: tuple[int, int] | None = None

    def __call__(self) -> int:
        taken = self._taken()
        if self._first is None:
            self._first = self._measure(), taken
        free, taken_then = self._first
        return max(0, free - max(0, taken - taken_then))


def taken_by_this_process() -> int:
    """Resident bytes, files of weights that are only mapped left out."""
    memory = psutil.Process(os.getpid()).memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def install() -> None:
    """Answer SGLang's question about a CPU's free memory; once in each worker.

    SGLang 0.5.22 has no function to replace: there, the machine's memory counts.
    """
    from sglang.srt.utils import common

    measure = getattr(common, "get_free_cpu_memory", None)
    if measure is not None and not isinstance(measure, FreeMemory):
        common.get_free_cpu_memory = FreeMemory(measure, taken_by_this_process)
