"""The GPU path without a GPU; the cases are in the four files that it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "gpu_path_cases.py",
        "fp8_experts_cases.py",
        "quant_method_cases.py",
        "rank_path_cases.py",
    ],
)
def test_cases_under_the_interpreter(name: str) -> None:
    cases = Path(__file__).with_name(name)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


HOOKS_WITHOUT_EXTRAS = """
import sys
absent = ("numba", "sklearn", "redis", "locust", "matplotlib", "prometheus_client")
sys.modules.update(dict.fromkeys(absent))
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from lynx_sglang.gpu.runtime import GpuBuilder
from lynx_sglang.integration.hooks import gpu_hooks
from lynx_sglang.settings import Settings
hooks = gpu_hooks(GpuBuilder(Settings()))
for name, hook in hooks.items():
    HookRegistry.register(name.hook_path, hook, HookType.AROUND)
HookRegistry.apply_hooks()
left_out = {name.hook_path for name in hooks} - HookRegistry._patched
assert not left_out, left_out
"""


def test_the_hooks_go_on_without_what_only_a_cpu_a_fleet_or_a_load_test_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOOKS_WITHOUT_EXTRAS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
