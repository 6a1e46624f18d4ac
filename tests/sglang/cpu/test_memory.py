"""Free memory on a machine that others use, too."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.utils import common

from lynx_sglang.cpu import memory
from lynx_sglang.cpu.memory import FreeMemory, taken_by_this_process

GIB = 1 << 30


def test_only_this_process_counts() -> None:
    machine, own = {"free": 10 * GIB}, {"taken": 1 * GIB}
    free = FreeMemory(lambda: machine["free"], lambda: own["taken"])
    assert free() == 10 * GIB
    machine["free"] = 2 * GIB  # another process has grown
    assert free() == 10 * GIB
    own["taken"] = 4 * GIB
    assert free() == 7 * GIB
    own["taken"] = 0
    assert free() == 10 * GIB
    own["taken"] = 100 * GIB
    assert free() == 0


def test_a_tensor_counts_and_sglang_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # An earlier test's platform may have installed it, with that time's memory.
    installed = common.get_free_cpu_memory
    monkeypatch.setattr(common, "get_free_cpu_memory", getattr(installed, "_measure", installed))
    memory.install()
    memory.install()  # once
    before, taken = common.get_available_gpu_memory("cpu", 0), taken_by_this_process()
    held = torch.ones(64 << 20)  # 256 MiB
    after = common.get_available_gpu_memory("cpu", 0)
    assert held.sum() > 0
    nodes = len(common.get_cpu_ids_by_node())
    assert 0.2 < (before - after) * nodes < 0.4
    assert taken_by_this_process() - taken > 200 << 20
