"""`select_triton` under Triton's interpreter; the cases are in select_triton_cases.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


def run(*command: str, is_interpreted: bool) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1" if is_interpreted else "0",
            "OMP_NUM_THREADS": "1",  # the tensors are tiny
            "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[2] / "kernels"), *sys.path]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def run_cases(is_interpreted: bool) -> None:
    cases = str(FOLDER / "select_triton_cases.py")
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", cases, is_interpreted=is_interpreted)


ALIGNED = """
from lynx_kernels.select.triton_kernels import select_kernel
print(*sorted(p.name for p in select_kernel.params if p.do_not_specialize_on_alignment))
"""


def test_controls_at_any_address_share_a_compiled_kernel() -> None:
    """A server's caps lie four bytes apart: one in four is aligned to 16 bytes."""
    printed = run("-c", ALIGNED, is_interpreted=False)
    assert printed.split() == ["budget_ptr", "demand_ptr", "floor_ptr", "row_class_ptr"]


def test_cases_under_the_interpreter() -> None:
    run_cases(is_interpreted=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cases_on_the_device() -> None:
    run_cases(is_interpreted=False)
