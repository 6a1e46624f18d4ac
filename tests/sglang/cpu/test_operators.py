"""The CPU platform's operators against SGLang's native forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.topk import fused_topk_torch_native
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

from lynx_sglang.cpu.operators import (
    fused_topk,
    gate_shared_expert,
    rms_norm_forward,
    rotary_forward,
)

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


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    ("rows", "experts", "top_k"), [(1, 64, 4), (16, 128, 8), (3, 5, 5), (0, 8, 2)]
)
def test_topk_is_native(rows: int, experts: int, top_k: int, renormalize: bool) -> None:
    logits = torch.randn(rows, experts) * 4
    weights, ids = fused_topk(logits, logits, top_k, renormalize)
    native_weights, native_ids = fused_topk_torch_native(logits, logits, top_k, renormalize)
    assert torch.equal(ids.long(), native_ids)
    torch.testing.assert_close(weights, native_weights, **TOLERANCE)


def test_topk_gives_ties_to_the_lower_id_and_no_expert_twice() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, -torch.inf, 1.0], [torch.nan] * 5])
    _, ids = fused_topk(logits, logits, 4, True)
    assert ids.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("bias", "scoring"), [(None, "sigmoid"), (torch.linspace(1, 0, 8), "sigmoid")]
)
def test_other_routers_run_native(bias: torch.Tensor | None, scoring: str) -> None:
    logits = torch.randn(4, 8)
    got = fused_topk(logits, logits, 2, True, bias, scoring)
    expected = fused_topk_torch_native(logits, logits, 2, True, bias, scoring)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_bias_may_have_a_row_of_its_own() -> None:
    """Ernie's correction bias is [1, E], which SGLang's native form does not take."""
    hidden, logits, bias = torch.randn(5, 8), torch.randn(5, 16), torch.randn(16)
    expected = fused_topk_torch_native(hidden, logits, 4, True, bias)
    got = fused_topk(hidden, logits, 4, True, bias.unsqueeze(0))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("do_add", [False, True])
def test_a_shared_expert_is_gated(do_add: bool) -> None:
    hidden, shared, before = torch.randn(3, 5, 96)
    gate = torch.randn(96)
    output = before.clone()
    gate_shared_expert(hidden, gate, shared, output, do_add=do_add)
    expected = torch.sigmoid((hidden * gate).sum(-1, keepdim=True)) * shared
    torch.testing.assert_close(output, expected + before if do_add else expected, **TOLERANCE)
