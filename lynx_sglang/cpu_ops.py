"""RMSNorm and rotary embedding for the CPU platform, each one compiled loop.

SGLang's native forms are a dozen small operators per call, and at decode sizes nearly all of their
time is dispatch. Plain SGLang gets these too. Cases not covered here run SGLang's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray


@njit(
    "void(float32[:, ::1], float32[::1], float64, float32[:, ::1])",
    cache=True,
    fastmath={"reassoc", "contract"},  # lets the sum run in vector registers
)
def rms_norm_rows(
    x: NDArray[np.float32],  # [M, H]
    weight: NDArray[np.float32],  # [H]
    epsilon: float,
    out: NDArray[np.float32],  # [M, H]
) -> None:
    """out = x / sqrt(mean(x^2) + epsilon) * weight, row by row."""
    num_columns = x.shape[1]
    for row in range(x.shape[0]):
        squares = np.float32(0.0)
        for column in range(num_columns):
            squares += x[row, column] * x[row, column]
        scale = np.float32(1.0 / np.sqrt(squares / num_columns + epsilon))
        for column in range(num_columns):
            out[row, column] = x[row, column] * scale * weight[column]


@njit("void(float32[:, ::1], int64[::1], float32[:, ::1], int64, float32[:, ::1])", cache=True)
def rotate_rows(
    x: NDArray[np.float32],  # [M, heads * D]
    positions: NDArray[np.int64],  # [M]
    cos_sin: NDArray[np.float32],  # [positions, D], cosines first
    head_size: int,
    out: NDArray[np.float32],  # [M, heads * D]
) -> None:
    """Turn each head's halves (a, b) into (a cos - b sin, b cos + a sin)."""
    half = head_size // 2
    for row in range(x.shape[0]):
        cos = cos_sin[positions[row], :half]
        sin = cos_sin[positions[row], half:]
        for start in range(0, x.shape[1], head_size):
            first = x[row, start : start + half]
            second = x[row, start + half : start + head_size]
            for i in range(half):
                out[row, start + i] = first[i] * cos[i] - second[i] * sin[i]
                out[row, start + half + i] = second[i] * cos[i] + first[i] * sin[i]


def rms_norm_forward(
    norm: Any,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    quant_linear: Any = None,
) -> Any:
    """``RMSNorm.forward`` of x [..., H] float32, after adding ``residual`` where there is one."""
    is_covered = (
        x.dtype == norm.weight.dtype == torch.float32
        and post_residual_addition is None
        and norm.override_orig_dtype is None
        and norm.variance_size_override is None
        and x.shape[-1] == norm.weight.shape[0]
    )
    if not is_covered:
        return norm.forward_native(x, residual, post_residual_addition, quant_linear)
    x = x.contiguous() if residual is None else x + residual
    out = torch.empty_like(x)
    num_columns = norm.weight.shape[0]
    rms_norm_rows(
        x.view(-1, num_columns).numpy(),
        norm.weight.detach().numpy(),
        norm.variance_epsilon,
        out.view(-1, num_columns).numpy(),
    )
    return out if residual is None else (out, x)


def rotary_forward(
    rotary: Any,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None = None,
    fused_set_kv_buffer_arg: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``RotaryEmbedding.forward`` of query [M, Hq * D] and key [M, Hk * D] float32, Neox layout."""
    is_covered = (
        rotary.is_neox_style
        and rotary.rotary_dim == rotary.head_size
        and offsets is None
        and fused_set_kv_buffer_arg is None
        and query.dim() == key.dim() == 2
        and query.dtype == key.dtype == rotary.cos_sin_cache.dtype == torch.float32
    )
    if not is_covered:
        return rotary.forward_native(  # type: ignore[no-any-return]
            positions, query, key, offsets, fused_set_kv_buffer_arg
        )
    positions = positions.flatten().to(torch.int64)
    return _rotate(rotary, positions, query), _rotate(rotary, positions, key)


def _rotate(rotary: Any, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    rotate_rows(
        x.numpy(), positions.numpy(), rotary.cos_sin_cache.numpy(), rotary.head_size, out.numpy()
    )
    return out


def install(dispatch_key: str) -> None:
    """Make SGLang's layers use these on the platform of ``dispatch_key``."""
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    BaseFusedOp.register_oot_forward(RMSNorm, rms_norm_forward, dispatch_key)
    BaseFusedOp.register_oot_forward(RotaryEmbedding, rotary_forward, dispatch_key)
