"""The end-to-end run on a GPU: its routers, and the whole driver at a toy size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def model() -> object:
    sys.path.insert(0, str(FOLDER))
    try:
        import e2e_model
    finally:
        sys.path.remove(str(FOLDER))
    return e2e_model


def test_the_skewed_router_has_the_published_union(model) -> None:
    spread = model.spread_of(128, 8)
    assert model.union(128, 8, 0.0) == pytest.approx(model.PUBLISHED_EVEN, abs=0.3)
    assert model.union(128, 8, spread) == pytest.approx(model.PUBLISHED_UNION, abs=0.3)


def test_a_routers_checkpoint_has_its_gates_and_nothing_else(model, tmp_path) -> None:
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


@pytest.mark.e2e
def test_the_dry_run_fills_its_report(tmp_path) -> None:
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(FOLDER / "e2e.py"), "--dry-run", "--rounds=1", f"--out={out}"]
    done = subprocess.run([*command, "--batches=4"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    header, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert header["device"] == "CPU, dry run"
    settings = [(row["router"], row.get("setting", "sglang")) for row in rows]
    plain = [(router, "sglang") for router in ("skewed", "uniform")]
    ours = ["100%", "75%", "50%", "30%", "slo"]
    assert settings == plain + [(router, name) for router, _ in plain for name in ours]
    for row in rows:
        assert 0 <= row["itl_p50_ms"] <= row["itl_p95_ms"]
        if row.get("budget"):
            assert row["active_experts"] <= max(row["budget"], row["batch"])
