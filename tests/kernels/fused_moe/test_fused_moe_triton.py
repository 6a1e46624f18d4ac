"""`fused_moe_triton` under Triton's interpreter; the cases are in fused_moe_triton_cases.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lynx_kernels.fused_moe import tuning
from lynx_kernels.fused_moe.tuning import Layer

CASES = Path(__file__).with_name("fused_moe_triton_cases.py")
LAYERS = {
    "Qwen3-30B-A3B": Layer(90, 2, 2048, 768, 128),
    "Qwen3-30B-A3B fp8": Layer(90, 1, 2048, 768, 128),
    "Qwen3-235B TP8": Layer(90, 2, 4096, 192, 128),
    "Mixtral-8x7B TP2 on an A100": Layer(80, 2, 4096, 7168, 8),
    "an unknown device, prime sizes": Layer(0, 2, 2053, 769, 61),
}


def run_cases(is_interpreted: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1" if is_interpreted else "0",
            "OMP_NUM_THREADS": "1",  # the matrices are tiny
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]


def test_cases_under_the_interpreter() -> None:
    run_cases(is_interpreted=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cases_on_the_device() -> None:
    run_cases(is_interpreted=False)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("size_class", tuning.SIZE_CLASSES)
def test_tiles_fit_the_device(layer: Layer, size_class: int) -> None:
    tiles = tuning.tiles_for(layer, size_class)
    shared_bytes = tuning.SHARED_BYTES.get(layer.arch, tuning.SHARED_BYTES_ELSEWHERE)
    for gemm, num_weights in ((tiles.gate_up, 2), (tiles.down, 1)):
        weight_bytes = num_weights * gemm.block_rows * layer.element_bytes
        stage_bytes = gemm.block_depth * (weight_bytes + 2 * gemm.block_tokens)
        assert gemm.programs_per_sm * gemm.num_stages * stage_bytes <= shared_bytes
        assert gemm.num_stages >= 2
    if tiles.is_concatenated:
        assert tiles.down.block_tokens >= size_class


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(
    "size_class", [size for size in tuning.SIZE_CLASSES if size <= tuning.MAX_CONCAT_ROWS]
)
def test_splits_fill_the_device_and_no_more(layer: Layer, size_class: int) -> None:
    down = tuning.tiles_for(layer, size_class).down
    splits = tuning.num_splits(down, layer, num_sms=132)
    num_blocks = -(-layer.hidden_size // down.block_rows)
    assert num_blocks * splits <= 132 * down.programs_per_sm
    assert splits * down.block_rows * down.block_tokens * 4 <= tuning.MAX_SPLIT_BYTES
    assert num_blocks * splits > 132 // 2


def test_a_measured_row_comes_before_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS["Qwen3-30B-A3B"]
    measured = tuning.tiles_for(layer, 64)
    monkeypatch.setitem(tuning.TABLE, (layer, 8), measured)
    assert tuning.tiles_for(layer, 8) == measured


def test_size_classes_cover_every_batch_size() -> None:
    assert [tuning.size_class_of(m) for m in (1, 8, 9, 64, 65, 4096)] == [8, 8, 16, 64, 128, 128]
