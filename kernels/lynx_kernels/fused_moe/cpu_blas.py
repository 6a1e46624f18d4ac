"""The `sgemm` of the BLAS that torch itself calls, from compiled code."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from numba import carray, cfunc, types

SYMBOL = "lynx_sgemm"
FLOAT_BYTES = 4
TRANSPOSED, AS_IS = ord("T"), ord("N")


def _register() -> bool:
    """Give the compiler the address of torch's `sgemm_`; False where torch exports none."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        sgemm = getattr(ctypes.CDLL(str(path)), "sgemm_", None)
        if sgemm is not None:
            binding.add_symbol(SYMBOL, ctypes.cast(sgemm, ctypes.c_void_p).value)
            return True
    return False


is_found = _register()
# Thirteen addresses: BLAS takes all by reference.
_sgemm = types.ExternalFunction(SYMBOL, types.void(*[types.intp] * 13))


@cfunc("void(intp, intp, voidptr, voidptr, intp, intp, intp, intp)", cache=True)
def grouped_sgemm(
    rows_at: int,  # float32 [sum(counts), K]
    weights_at: int,  # float32 [any, N, K]
    groups_at: Any,  # int64 [num_groups]
    counts_at: Any,  # int64 [num_groups]
    num_groups: int,
    num_inputs: int,  # K
    num_outputs: int,  # N
    out_at: int,  # float32 [sum(counts), N] out
) -> None:
    """out of group i = its rows @ weights[groups[i]].T, as `torch.mm` asks BLAS for it."""
    groups = carray(groups_at, num_groups, np.int64)
    counts = carray(counts_at, num_groups, np.int64)
    letters = np.empty(2, np.uint8)
    letters[0], letters[1] = TRANSPOSED, AS_IS
    sizes = np.empty(3, np.int32)
    sizes[0], sizes[2] = num_outputs, num_inputs
    factors = np.empty(2, np.float32)
    factors[0], factors[1] = 1.0, 0.0
    transposed, as_is = letters.ctypes.data, letters[1:].ctypes.data
    n, m, k = sizes.ctypes.data, sizes[1:].ctypes.data, sizes[2:].ctypes.data
    one, zero = factors.ctypes.data, factors[1:].ctypes.data
    row_bytes, out_bytes = FLOAT_BYTES * num_inputs, FLOAT_BYTES * num_outputs
    for i in range(num_groups):
        sizes[1] = counts[i]
        weight_at = weights_at + groups[i] * num_outputs * row_bytes
        _sgemm(transposed, as_is, n, m, k, one, weight_at, k, rows_at, k, zero, out_at, n)
        rows_at += counts[i] * row_bytes
        out_at += counts[i] * out_bytes
