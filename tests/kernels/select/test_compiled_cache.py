"""Compiled selection is kept on disk: never beyond the sources that it was compiled from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import lynx_kernels

CUT = """
import torch
from lynx_kernels import RowClass, select
scores = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.6, 0.05, 0.25, 0.1]])
weights, ids = scores.topk(2)
flexible = torch.full((2,), int(RowClass.FLEXIBLE), dtype=torch.uint8)
one, two = torch.tensor([1, 2], dtype=torch.int32)
cut = select(scores, ids.int(), weights, flexible, budget=two, floor=one)
print(round(cut.topk_weights[1, 1].item(), 4))
"""


def test_a_constant_that_changes_is_compiled_again(tmp_path: Path) -> None:
    package = tmp_path / "lynx_kernels"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(lynx_kernels.__file__).parent, package, ignore=ignored)

    def refill() -> float:
        done = subprocess.run(
            [sys.executable, "-c", CUT], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    assert refill() == 0.075  # 30 % of the lost 0.25
    policies = package / "select" / "policies.py"
    policies.write_text(policies.read_text().replace("REFILL_SHARE = 0.3", "REFILL_SHARE = 0.4"))
    assert refill() == 0.1
