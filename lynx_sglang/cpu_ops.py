"""RMSNorm and rotary embedding for the CPU platform: one compiled loop, and a few torch calls.

SGLang's native forms are a dozen small operators per call; at decode sizes their dispatch is a
fifth of a CPU step. Plain SGLang gets these too. Cases not covered here run SGLang's own.
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
    """Rotate query [M, Hq * D] and key [M, Hk * D] in one pass over all heads (Neox layout)."""
    is_covered = (
        rotary.is_neox_style
        and rotary.rotary_dim == rotary.head_size
        and offsets is None
        and fused_set_kv_buffer_arg is None
        and query.dim() == key.dim() == 2
    )
    if not is_covered:
        return rotary.forward_native(  # type: ignore[no-any-return]
            positions, query, key, offsets, fused_set_kv_buffer_arg
        )
    num_tokens, half = query.shape[0], rotary.head_size // 2
    cos_sin = rotary.cos_sin_cache.index_select(0, positions.flatten()).to(query.dtype)
    cos, sin = cos_sin.view(num_tokens, 1, 2, half).unbind(2)
    first, second = torch.cat((query, key), dim=1).view(num_tokens, -1, 2, half).unbind(2)
    rotated = torch.stack(
        (
            torch.addcmul(first * cos, second, sin, value=-1),
            torch.addcmul(second * cos, first, sin),
        ),
        dim=2,
    )
    width = query.shape[1]
    rotated = rotated.view(num_tokens, -1)
    return rotated[:, :width], rotated[:, width:]


def install(dispatch_key: str) -> None:
    """Make SGLang's layers use these on the platform of ``dispatch_key``."""
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    BaseFusedOp.register_oot_forward(RMSNorm, rms_norm_forward, dispatch_key)
    BaseFusedOp.register_oot_forward(RotaryEmbedding, rotary_forward, dispatch_key)
