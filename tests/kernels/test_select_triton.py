"""`select_triton`: its cases under Triton's interpreter, and its kernels compiled without a GPU.

The cases are in select_triton_cases.py, the compilation is in compile_select.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

FOLDER = Path(__file__).parent
PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
MAX_SHARED_BYTES = 48 * 1024  # what a program has everywhere, without asking for more
needs_ptxas = pytest.mark.skipif(
    not PTXAS.exists() and not shutil.which("ptxas"), reason="needs ptxas, which Triton carries"
)


def run(*command: str, is_interpreted: bool) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1" if is_interpreted else "0",
            "OMP_NUM_THREADS": "1",  # the tensors are tiny
            "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1] / "kernels"), *sys.path]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def run_cases(is_interpreted: bool) -> None:
    cases = str(FOLDER / "select_triton_cases.py")
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", cases, is_interpreted=is_interpreted)


def test_cases_under_the_interpreter():
    run_cases(is_interpreted=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cases_on_the_device():
    run_cases(is_interpreted=False)


@needs_ptxas
@pytest.mark.parametrize(
    ("slots", "num_kernels"),
    [(("8,128,8", "64,128,8", "256,512,8", "16,64,4"), 4), (("300,128,8",), 3)],
    ids=["one launch", "three launches"],
)
def test_kernels_compile_without_spills(slots, num_kernels):
    listing = run(str(FOLDER / "compile_select.py"), *slots, is_interpreted=False)
    rows = [json.loads(line) for line in listing.splitlines()]
    assert len(rows) == 3 * num_kernels
    for row in rows:
        assert row["spilled_bytes"] == 0, row
        assert row["registers"] * 32 * row["warps"] <= 64 * 1024, row
        assert row["shared_bytes"] <= MAX_SHARED_BYTES, row
        assert row["waits"] == (row["arch"] >= 90), row
