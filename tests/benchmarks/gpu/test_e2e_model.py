"""The routers of the end-to-end run on a GPU, and its end when the time is up.

`make gpu-e2e ARGS=--dry-run` runs all of it, and so does tests/e2e/test_gpu_e2e.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from benchmarks.gpu import e2e_model as model

ROOT = Path(__file__).parents[3]
E2E = (sys.executable, "-m", "benchmarks.gpu.e2e")


def test_the_skewed_router_has_the_published_union() -> None:
    spread = model.spread_of(128, 8)
    assert model.union(128, 8, 0.0) == pytest.approx(model.PUBLISHED_EVEN, abs=0.3)
    assert model.union(128, 8, spread) == pytest.approx(model.PUBLISHED_UNION, abs=0.3)


def test_a_routers_checkpoint_has_its_gates_and_nothing_else(tmp_path) -> None:
    shape = model.TINY
    for router in model.ROUTERS:
        folder = model.write_router(tmp_path / router, shape, router)
        tensors = load_file(folder / "model.safetensors")
        assert len(tensors) == 2 * shape.num_hidden_layers
        gate = tensors["model.layers.1.mlp.gate.weight"]
        assert gate.shape == (shape.num_experts, shape.hidden_size)
        lengths = np.linalg.norm(gate, axis=1)
        is_even = bool(lengths.max() < 2 * lengths.min())
        assert is_even is (router == "uniform")


def test_a_rows_strongest_expert_has_the_same_share_under_either_router() -> None:
    spreads = {"skewed": model.spread_of(128, 8), "uniform": 0.0}
    for router, spread in spreads.items():
        rng = np.random.default_rng(0)
        scale = model.LOGIT_STD[router] * np.exp(spread * rng.normal(size=(200, 1, 128)))
        logits = np.sort(scale * rng.normal(size=(200, 16, 128)), axis=2)[:, :, -8:]
        weights = np.exp(logits)
        weights /= weights.sum(axis=2, keepdims=True)
        assert weights[:, :, -1].mean() == pytest.approx(0.3, abs=0.03)


def test_the_time_is_up_whatever_is_waited_for_and_no_server_is_left(tmp_path) -> None:
    """Three seconds are too few for a server to start."""
    out = tmp_path / "rows.jsonl"
    command = [*E2E, "--dry-run", "--limit-min", "0.05", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == f"time is up: 0 rows are in {out}"
    assert done.returncode == 1
    assert len(out.read_text().splitlines()) == 1  # the header
    log = ROOT / "build" / "gpu" / "e2e" / "sglang.log"
    opened = str(log.resolve())
    for process in psutil.process_iter():
        try:
            assert opened not in [file.path for file in process.open_files()], process
        except psutil.Error:  # gone meanwhile, or another user's
            continue
