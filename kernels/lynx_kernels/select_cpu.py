"""Selection on CPU tensors: the compiled rows of `select_cpu_kernels`, called by address.

A step selects in every layer, so an array library's calls would cost more than the experts that
selection saves; compiled loops cost a tenth of that, and array objects for them as much again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, cfunc
from torch import Tensor

from lynx_kernels.policies import Demand, Importance, Policy, Weights
from lynx_kernels.select_cpu_kernels import select_rows
from lynx_kernels.selection import Selection

DEMANDS, IMPORTANCES, WEIGHTS = list(Demand), list(Importance), list(Weights)
NO_BINS = np.empty(0, np.float64)
NONE = 0  # the address of what is not given


@cfunc(
    "void(voidptr, voidptr, voidptr, voidptr, voidptr, int64, int64, int64, int64, boolean,"
    " voidptr, voidptr, float64, int64, int64, boolean, int64, float64, voidptr, int64, int64,"
    " voidptr, int64, float64, voidptr, voidptr, voidptr, voidptr, voidptr)",
    cache=True,
)
def select_at(
    scores_at: Any,  # float32 [M, E]
    ids_at: Any,  # int64 [M, K] where is_wide, else int32
    weights_at: Any,  # float32 [M, K]
    classes_at: Any,  # uint8 [M]
    bias_at: Any,  # float32 [num_biases]
    num_biases: int,  # E or 0
    num_rows: int,
    num_experts: int,
    top_k: int,
    is_wide: bool,
    budget_at: Any,  # int32 []
    floor_at: Any,  # int32 []
    share: float,
    demand_rule: int,
    importance_rule: int,
    is_refilling: bool,
    weights_rule: int,
    confidence: float,
    bin_edges_at: Any,  # float64 [num_bins]
    num_bins: int,
    max_vote_base: int,
    similarity_at: Any,  # float32 [num_similar, num_similar]
    num_similar: int,  # E or 0
    min_similarity: float,
    out_ids_at: Any,  # as ids, out
    out_weights_at: Any,  # float32 [M, K] out
    retained_at: Any,  # float32 [M] out
    active_at: Any,  # bool [E] out
    num_active_at: Any,  # int32 [] out
) -> None:
    """`select_rows` of what lies at these addresses."""
    scores = carray(scores_at, (num_rows, num_experts), np.float32)
    weights = carray(weights_at, (num_rows, top_k), np.float32)
    out_weights = carray(out_weights_at, (num_rows, top_k), np.float32)
    classes = carray(classes_at, num_rows, np.uint8)
    bias = carray(bias_at, num_biases, np.float32)
    similarity = carray(similarity_at, (num_similar, num_similar), np.float32)
    bin_edges = carray(bin_edges_at, num_bins, np.float64)
    retained = carray(retained_at, num_rows, np.float32)
    active = carray(active_at, num_experts, np.bool_)
    num_active = carray(num_active_at, 1, np.int32)
    cap = max(carray(budget_at, 1, np.int32)[0], 0)
    floor_k = min(max(carray(floor_at, 1, np.int32)[0], 0), top_k)
    if is_wide:
        num_active[0] = select_rows(
            scores, carray(ids_at, (num_rows, top_k), np.int64), weights, classes, bias,
            cap, floor_k, share, demand_rule, importance_rule, is_refilling, weights_rule,
            confidence, bin_edges, max_vote_base, similarity, min_similarity,
            carray(out_ids_at, (num_rows, top_k), np.int64), out_weights, retained, active,
        )  # fmt: skip
    else:
        num_active[0] = select_rows(
            scores, carray(ids_at, (num_rows, top_k), np.int32), weights, classes, bias,
            cap, floor_k, share, demand_rule, importance_rule, is_refilling, weights_rule,
            confidence, bin_edges, max_vote_base, similarity, min_similarity,
            carray(out_ids_at, (num_rows, top_k), np.int32), out_weights, retained, active,
        )  # fmt: skip


_select_at = select_at.ctypes


def select_cpu(
    scores: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_class: Tensor,
    *,
    budget: Tensor,
    floor: Tensor,
    demand: Tensor | None,
    policy: Policy,
    correction_bias: Tensor | None,
    similarity: Tensor | None = None,
) -> Selection:
    share = 1.0 if demand is None else float(demand)
    share = max(share, 0.0) if share < 1.0 else 1.0  # NaN: 1
    scores, topk_ids = scores.contiguous(), topk_ids.contiguous()
    topk_weights, row_class = topk_weights.contiguous(), row_class.contiguous()
    bias = None if correction_bias is None else correction_bias.contiguous()
    similarity = None if similarity is None else similarity.contiguous()
    has_bins = policy.importance is Importance.BINS
    bin_edges = np.array(policy.bin_edges, np.float64) if has_bins else NO_BINS
    (num_rows, num_experts), top_k = scores.shape, topk_ids.shape[1]
    out_ids, out_weights = torch.empty_like(topk_ids), torch.empty_like(topk_weights)
    retained = torch.empty(num_rows, device="cpu")
    active = torch.empty(num_experts, dtype=torch.bool, device="cpu")
    num_active = torch.empty((), dtype=torch.int32, device="cpu")
    _select_at(
        scores.data_ptr(),
        topk_ids.data_ptr(),
        topk_weights.data_ptr(),
        row_class.data_ptr(),
        NONE if bias is None else bias.data_ptr(),
        0 if bias is None else num_experts,
        num_rows,
        num_experts,
        top_k,
        topk_ids.dtype is torch.int64,
        budget.data_ptr(),
        floor.data_ptr(),
        share,
        DEMANDS.index(policy.demand),
        IMPORTANCES.index(policy.importance),
        policy.is_refilling,
        WEIGHTS.index(policy.weights),
        policy.confidence,
        bin_edges.ctypes.data,
        len(bin_edges),
        policy.max_vote_base,
        NONE if similarity is None else similarity.data_ptr(),
        0 if similarity is None else num_experts,
        policy.min_similarity,
        out_ids.data_ptr(),
        out_weights.data_ptr(),
        retained.data_ptr(),
        active.data_ptr(),
        num_active.data_ptr(),
    )
    return Selection(out_ids, out_weights, active, num_active, retained)
