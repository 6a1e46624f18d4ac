"""Products of groups of rows, each with its own matrix, on CPU.

torch has no call for it, and one `torch.mm` per group costs more in dispatch than in arithmetic at
decode sizes. Float32 groups go straight to the BLAS routine behind `torch.mm`, from one compiled
loop; the arithmetic, and so each bit, is the same.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lynx_kernels import scratch

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]


def grouped_mm(rows: Tensor, weights: Tensor, groups: Ints, counts: Ints) -> Tensor:
    """`counts[i]` rows after another times `weights[groups[i]]` transposed: [rows, N].

    rows [sum(counts), K] and weights [any, N, K], of one dtype; counts > 0.
    """
    out = scratch.empty(rows.shape[0], weights.shape[1], like=rows)
    is_plain = rows.dtype == torch.float32 and rows.is_contiguous() and weights.is_contiguous()
    products = blas_products() if is_plain else torch_products
    products(rows, weights, groups, counts, out)
    return out


def torch_products(rows: Tensor, weights: Tensor, groups: Ints, counts: Ints, out: Tensor) -> None:
    """`grouped_mm` into out, one `torch.mm` at a time."""
    sizes = counts.tolist()
    parts = zip(
        groups.tolist(), rows.split_with_sizes(sizes), out.split_with_sizes(sizes), strict=True
    )
    for group, x, y in parts:
        torch.mm(x, weights[group].t(), out=y)


@cache
def blas_products() -> Callable[[Tensor, Tensor, Ints, Ints, Tensor], None]:
    """`grouped_mm` into out by torch's own BLAS, or by torch where that cannot be called."""
    if importlib.util.find_spec("numba") is None:
        logger.warning("numba is not installed: experts on CPU run one torch.mm each, and slower")
        return torch_products
    from lynx_kernels.fused_moe import cpu_blas

    if not cpu_blas.is_found:
        logger.warning("torch exports no sgemm_: experts on CPU run one torch.mm each, and slower")
        return torch_products
    call: Any = cpu_blas.grouped_sgemm.ctypes

    def run(rows: Tensor, weights: Tensor, groups: Ints, counts: Ints, out: Tensor) -> None:
        call(
            rows.data_ptr(),
            weights.data_ptr(),
            groups.ctypes.data,
            counts.ctypes.data,
            len(groups),
            weights.shape[2],
            weights.shape[1],
            out.data_ptr(),
        )

    return run
