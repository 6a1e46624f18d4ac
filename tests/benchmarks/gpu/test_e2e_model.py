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
from benchmarks.gpu.e2e import show
from benchmarks.gpu.e2e_quality import fault_of

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


def test_the_sensitive_checkpoint_routes_as_the_skewed_one(tmp_path) -> None:
    shape = model.TINY
    found = {
        name: load_file(folder / "model.safetensors")
        for name, folder in (
            ("skewed", model.write_router(tmp_path / "skewed", shape, "skewed")),
            ("sensitive", model.write_sensitive(tmp_path / "sensitive", shape)),
        )
    }
    added = found["sensitive"].keys() - found["skewed"].keys()
    assert added == {"model.norm.weight"}
    hidden = np.random.default_rng(0).normal(size=(50, shape.hidden_size))
    for layer in range(shape.num_hidden_layers):
        logits = [
            (hidden * tensors[f"model.layers.{layer}.post_attention_layernorm.weight"])
            @ tensors[f"model.layers.{layer}.mlp.gate.weight"].T
            for tensors in found.values()
        ]
        np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "kl", "kl_rows", "said"),
    [
        ("uncut", 0.0, 80, None),
        ("uncut", 2e-6, 80, "KL 2e-06 nats a token, expected at most 1e-06"),
        ("half", 0.3, 80, None),
        ("half", 0.0, 80, "KL 0 nats a token, expected at least 0.001"),
        ("half", None, 0, "no step was shadowed"),
    ],
)
def test_a_kl_that_is_otherwise_is_a_fault(
    setting: str, kl: float | None, kl_rows: int, said: str | None
) -> None:
    row = {"batch": 4, "budget": 15, "setting": setting, "kl": kl, "kl_rows": kl_rows}
    fault = fault_of(row)
    assert fault is None if said is None else said in str(fault)
    assert fault_of({"batch": 4, "setting": "50%"}) is None


@pytest.mark.parametrize(("gap_ms", "gain"), [(2.0, "2.00x"), (0.0, "")])
def test_a_row_is_printed_whatever_its_gaps(
    gap_ms: float, gain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("tpot_ms", "itl_p95_ms", "tokens_per_s", "graph_share")
    row = {"router": "skewed", "side": "lynx", "batch": 4, "itl_p50_ms": gap_ms}
    show(row | dict.fromkeys(names, 1.0) | {"active_experts": 8.0}, {("skewed", 4): 4.0})
    assert capsys.readouterr().out.rstrip().endswith(f"graphs 1.0  {gain}".rstrip())


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
