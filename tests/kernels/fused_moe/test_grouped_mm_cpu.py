"""Grouped products on CPU: the bits of `torch.mm`, whatever runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lynx_kernels.fused_moe import cpu_blas
from lynx_kernels.fused_moe.cpu_grouped_mm import Ints, blas_products, grouped_mm, torch_products


def case(
    counts: list[int],
    num_inputs: int = 128,
    num_outputs: int = 96,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, Ints, Ints]:
    torch.manual_seed(0)
    weights = torch.randn(2 * len(counts) + 1, num_outputs, num_inputs, dtype=dtype)
    rows = torch.randn(sum(counts), num_inputs, dtype=dtype)
    return rows, weights, np.arange(len(counts)) * 2, np.array(counts)


@pytest.mark.parametrize("counts", [[4] * 16, [1, 2, 3, 16], [700], []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_strided", [False, True])
def test_each_group_is_a_product_of_its_own(
    counts: list[int], dtype: torch.dtype, is_strided: bool
) -> None:
    rows, weights, groups, sizes = case(counts, dtype=dtype)
    if is_strided:
        weights = weights.transpose(1, 2).contiguous().transpose(1, 2)
    ends = sizes.cumsum()
    expected = [
        torch.mm(rows[end - count : end], weights[group].t())
        for group, count, end in zip(groups, sizes, ends, strict=True)
    ]
    got = grouped_mm(rows, weights, groups, sizes)
    assert torch.equal(got, torch.cat([rows.new_empty(0, 96), *expected]))


def test_torch_exports_its_blas_here() -> None:
    assert cpu_blas.is_found
    assert blas_products() is not torch_products


def test_without_numba_torch_multiplies_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert blas_products.__wrapped__() is torch_products
    assert "numba is not installed" in caplog.text
