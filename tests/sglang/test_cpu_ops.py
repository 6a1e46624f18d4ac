"""The CPU platform's operators against SGLang's native forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

from lynx_sglang.cpu_ops import rms_norm_forward, rotary_forward

TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture
def norm() -> Any:
    norm = RMSNorm(96, eps=1e-5)
    norm.weight.data.uniform_(-2, 2)
    return norm


@pytest.mark.parametrize("shape", [(1, 96), (5, 96), (3, 2, 96), (0, 96)])
def test_rms_norm_is_native(norm: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * 3
    torch.testing.assert_close(rms_norm_forward(norm, x), norm.forward_native(x), **TOLERANCE)


def test_rms_norm_adds_the_residual(norm: Any) -> None:
    x, residual = torch.randn(2, 7, 96)
    before = x.clone(), residual.clone()
    for got, expected in zip(
        rms_norm_forward(norm, x, residual), norm.forward_native(x, residual), strict=True
    ):
        torch.testing.assert_close(got, expected, **TOLERANCE)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_rms_norm_takes_strided_rows(norm: Any) -> None:
    x = torch.randn(4, 200)[:, 3:99]
    torch.testing.assert_close(rms_norm_forward(norm, x), norm.forward_native(x), **TOLERANCE)


def test_a_row_does_not_depend_on_its_batch(norm: Any) -> None:
    x = torch.randn(9, 96)
    alone = torch.cat([rms_norm_forward(norm, row) for row in x.split(1)])
    assert torch.equal(rms_norm_forward(norm, x), alone)


def test_other_dtypes_run_native(norm: Any) -> None:
    norm.to(torch.bfloat16)
    x = torch.randn(3, 96, dtype=torch.bfloat16)
    assert torch.equal(rms_norm_forward(norm, x), norm.forward_native(x))


@pytest.mark.parametrize(("rotary_dim", "is_neox"), [(32, True), (16, True), (32, False)])
def test_rotary_is_native(rotary_dim: int, is_neox: bool) -> None:
    rotary = RotaryEmbedding(32, rotary_dim, 128, 10_000, is_neox, torch.float32)
    query, key = torch.randn(6, 4 * 32), torch.randn(6, 2 * 32)
    positions = torch.tensor([0, 1, 127, 5, 5, 64])
    got = rotary_forward(rotary, positions, query.clone(), key.clone())
    expected = rotary.forward_native(positions, query, key)
    for rotated, native in zip(got, expected, strict=True):
        torch.testing.assert_close(rotated, native, **TOLERANCE)
