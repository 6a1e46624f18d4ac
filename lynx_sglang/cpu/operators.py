"""RMSNorm, rotary embedding and softmax top-k for the CPU platform, one compiled loop each.

SGLang's native forms run a dozen small operators per call. At decode sizes nearly all of their time
is dispatch. The loops also serve plain SGLang on this platform. Cases that they do not cover run
SGLang's own forms.

The loops take addresses: making an array object of each argument would take longer than the loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, cfunc
from sglang.srt.layers.moe.topk import fused_topk_torch_native

IS_FASTMATH = {"reassoc", "contract"}  # sums may use vector registers


@cfunc(
    "void(voidptr, voidptr, float64, int64, int64, voidptr)",
    cache=True,
    fastmath=IS_FASTMATH,
)
def rms_norm_rows(
    x_at: Any,  # float32 [M, H]
    weight_at: Any,  # float32 [H]
    epsilon: float,
    num_rows: int,
    num_columns: int,
    out_at: Any,  # float32 [M, H]
) -> None:
    """out = x / sqrt(mean(x^2) + epsilon) * weight, row by row."""
    x = carray(x_at, (num_rows, num_columns), np.float32)
    weight = carray(weight_at, num_columns, np.float32)
    out = carray(out_at, (num_rows, num_columns), np.float32)
    for row in range(num_rows):
        squares = np.float32(0.0)
        for column in range(num_columns):
            squares += x[row, column] * x[row, column]
        scale = np.float32(1.0 / np.sqrt(squares / num_columns + epsilon))
        for column in range(num_columns):
            out[row, column] = x[row, column] * scale * weight[column]


@cfunc(
    "void(voidptr, voidptr, voidptr, int64, int64, int64, voidptr)",
    cache=True,
)
def rotate_rows(
    x_at: Any,  # float32 [M, heads, D]
    positions_at: Any,  # int64 [M]
    cos_sin_at: Any,  # float32 [positions, D], cosines first
    num_rows: int,
    num_heads: int,
    head_size: int,
    out_at: Any,  # float32 [M, heads, D]
) -> None:
    """Turn each head's halves (a, b) into (a cos - b sin, b cos + a sin)."""
    if num_rows == 0:
        return
    x = carray(x_at, (num_rows, num_heads, head_size), np.float32)
    positions = carray(positions_at, num_rows, np.int64)
    out = carray(out_at, (num_rows, num_heads, head_size), np.float32)
    half = head_size // 2
    table = carray(cos_sin_at, (positions.max() + 1, head_size), np.float32)
    for row in range(num_rows):
        cos = table[positions[row], :half]
        sin = table[positions[row], half:]
        for head in range(num_heads):
            first, second = x[row, head, :half], x[row, head, half:]
            for i in range(half):
                out[row, head, i] = first[i] * cos[i] - second[i] * sin[i]
                out[row, head, half + i] = second[i] * cos[i] + first[i] * sin[i]


@cfunc(
    "void(voidptr, int64, int64, int64, boolean, voidptr, voidptr)",
    cache=True,
    fastmath=IS_FASTMATH,
)
def softmax_topk_rows(
    logits_at: Any,  # float32 [M, E]
    num_rows: int,
    num_experts: int,
    top_k: int,
    renormalize: bool,
    weights_at: Any,  # float32 [M, K] out
    ids_at: Any,  # int32 [M, K] out
) -> None:
    """The K largest of softmax(row), falling, ties by lower id; a row of NaN takes ids 0 to K-1."""
    logits = carray(logits_at, (num_rows, num_experts), np.float32)
    all_weights = carray(weights_at, (num_rows, top_k), np.float32)
    all_ids = carray(ids_at, (num_rows, top_k), np.int32)
    for row in range(num_rows):
        weights, ids = all_weights[row], all_ids[row]
        for expert in range(num_experts):
            logit = logits[row, expert]
            if expert >= top_k and not logit > weights[top_k - 1]:
                continue
            k = min(expert, top_k - 1)
            while k > 0 and logit > weights[k - 1]:
                weights[k], ids[k] = weights[k - 1], ids[k - 1]
                k -= 1
            weights[k], ids[k] = logit, expert
        peak = weights[0]
        total = np.float32(0.0)  # the weights' denominator
        for expert in range(top_k if renormalize else num_experts):
            logit = weights[expert] if renormalize else logits[row, expert]
            total += np.exp(logit - peak)
        for k in range(top_k):
            weights[k] = np.exp(weights[k] - peak) / total


_rms_norm_rows, _rotate_rows = rms_norm_rows.ctypes, rotate_rows.ctypes
_softmax_topk_rows = softmax_topk_rows.ctypes


def rms_norm_forward(
    norm: Any,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    quant_linear: Any = None,
) -> Any:
    """``RMSNorm.forward`` of x [..., H] float32 plus ``residual``, if there is one."""
    weight = norm.weight  # once: torch looks parameters up by name
    is_covered = (
        x.dtype == weight.dtype == torch.float32
        and post_residual_addition is None
        and norm.override_orig_dtype is None
        and norm.variance_size_override is None
        and x.shape[-1] == weight.shape[0]
        and weight.is_contiguous()
    )
    if not is_covered:
        return norm.forward_native(x, residual, post_residual_addition, quant_linear)
    x = x.contiguous() if residual is None else x + residual
    out = torch.empty_like(x)
    num_columns = x.shape[-1]
    _rms_norm_rows(
        x.data_ptr(),
        weight.data_ptr(),
        norm.variance_epsilon,
        x.numel() // num_columns,
        num_columns,
        out.data_ptr(),
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
    cos_sin = rotary.cos_sin_cache
    is_covered = (
        rotary.is_neox_style
        and rotary.rotary_dim == rotary.head_size
        and offsets is None
        and fused_set_kv_buffer_arg is None
        and query.dim() == key.dim() == 2
        and query.dtype == key.dtype == cos_sin.dtype == torch.float32
    )
    if not is_covered:
        return rotary.forward_native(  # type: ignore[no-any-return]
            positions, query, key, offsets, fused_set_kv_buffer_arg
        )
    positions = positions.flatten().to(torch.int64).contiguous()
    head_size = rotary.head_size
    return (
        _rotate(query, positions, cos_sin, head_size),
        _rotate(key, positions, cos_sin, head_size),
    )


def _rotate(
    x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, head_size: int
) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    _rotate_rows(
        x.data_ptr(),
        positions.data_ptr(),
        cos_sin.data_ptr(),
        x.shape[0],
        x.shape[1] // head_size,
        head_size,
        out.data_ptr(),
    )
    return out


def fused_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    correction_bias: torch.Tensor | None = None,
    scoring_func: str = "softmax",
) -> tuple[torch.Tensor, torch.Tensor]:
    """``fused_topk_native`` of logits [M, E]: weights [M, K] float32 and ids [M, K] int32."""
    is_covered = (
        scoring_func == "softmax"
        and correction_bias is None
        and gating_output.dtype == torch.float32
        and 0 < topk <= gating_output.shape[1]
    )
    if not is_covered:
        if correction_bias is not None:
            correction_bias = correction_bias.view(-1)  # Ernie's is [1, E]
        return fused_topk_torch_native(  # type: ignore[no-any-return]
            hidden_states, gating_output, topk, renormalize, correction_bias, scoring_func
        )
    (num_rows, num_experts), logits = gating_output.shape, gating_output.contiguous()
    weights = torch.empty(num_rows, topk)
    ids = torch.empty(num_rows, topk, dtype=torch.int32)
    _softmax_topk_rows(
        logits.data_ptr(),
        num_rows,
        num_experts,
        topk,
        renormalize,
        weights.data_ptr(),
        ids.data_ptr(),
    )
    return weights, ids


def gate_shared_expert(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    output: torch.Tensor,
    *,
    do_add: bool,
) -> None:
    """Write sigmoid(hidden [M, H] . gate [H]) * shared [M, H] to ``output``, or add it.

    SGLang's form is a Triton kernel. Qwen2-MoE's shared experts have such a gate.
    """
    gate = torch.sigmoid(hidden_states.float() @ gate_weight.float()).unsqueeze(-1)
    gated = gate * shared_output
    output.copy_(output + gated if do_add else gated)


def install(dispatch_key: str) -> None:
    """Make SGLang's layers run these forms on the platform of ``dispatch_key``."""
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.kernels.ops.elementwise import elementwise
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.moe import topk as sglang_topk
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    BaseFusedOp.register_oot_forward(RMSNorm, rms_norm_forward, dispatch_key)
    BaseFusedOp.register_oot_forward(RotaryEmbedding, rotary_forward, dispatch_key)
    sglang_topk.fused_topk_native = fused_topk  # SGLang binds it at import, by machine
    elementwise._launch_fused_gate_sigmoid_mul = gate_shared_expert
