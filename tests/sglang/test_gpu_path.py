"""The GPU path without a GPU; the cases are in gpu_path_cases.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_cases_under_the_interpreter() -> None:
    cases = Path(__file__).with_name("gpu_path_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_a_gpu_host_needs_nothing_but_sglang() -> None:
    """What serves there imports without the packages of a CPU, a fleet or a load test."""
    absent = ("numba", "sklearn", "redis", "locust", "matplotlib", "prometheus_client")
    lines = (
        "import sys",
        f"sys.modules.update(dict.fromkeys({absent}))",
        "import lynx_sglang.plugin, lynx_sglang.hooks, lynx_sglang.gpu_runtime",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
