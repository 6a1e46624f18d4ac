"""Selection on CPU tensors: the compiled rows of `select_cpu_kernels`, called by address.

A step selects in every layer, so an array library's calls would cost more than the experts that
selection saves; compiled loops cost a tenth of that, and array objects for them as much again.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import carray, cfunc
from torch import Tensor

from lynx_kernels.select.cpu_kernels import select_rows
from lynx_kernels.select.policies import Demand, Importance, Policy, Weights
from lynx_kernels.select.selection import Selection

DEMANDS, IMPORTANCES, WEIGHTS = list(Demand), list(Importance), list(Weights)
NO_BINS = np.empty(0, np.float64)
NONE = 0  # the address of what is not given


SIGNATURE = (
    "void(voidptr, voidptr, voidptr, voidptr, voidptr, int64, int64, int64, int64,"
    " voidptr, voidptr, float64, int64, int64, boolean, int64, float64, voidptr, int64, int64,"
    " voidptr, int64, float64, voidptr, int64, voidptr, voidptr, voidptr, voidptr, voidptr)"
)


# What is compiled into an entry, with its constants. Of these files numba's cache knows nothing.
SOURCES = ("policies.py", "cpu_kernels.py", "cpu_peers.py")


def version() -> int:
    """Of the sources."""
    here = Path(__file__)
    return zlib.crc32(b"".join(here.with_name(name).read_bytes() for name in SOURCES))


def entry(id_type: type[np.signedinteger[Any]]) -> Any:
    """`select_rows` of what lies at addresses, for ids of this type."""
    compiled_from = version()

    @cfunc(SIGNATURE, cache=True)
    def select_at(
        scores_at: Any,  # float32 [M, E]
        ids_at: Any,  # [M, K]
        weights_at: Any,  # float32 [M, K]
        classes_at: Any,  # uint8 [M]
        bias_at: Any,  # float32 [num_biases]
        num_biases: int,  # E or 0
        num_rows: int,
        num_experts: int,
        top_k: int,
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
        contribution_at: Any,  # float32 [num_contributions]
        num_contributions: int,  # E or 0
        out_ids_at: Any,  # [M, K] out
        out_weights_at: Any,  # float32 [M, K] out
        retained_at: Any,  # float32 [M] out
        active_at: Any,  # bool [E] out
        num_active_at: Any,  # int32 [] out
    ) -> None:
        if compiled_from < 0:  # never: a closure's values are part of the cache's key
            return
        num_active = carray(num_active_at, 1, np.int32)
        num_active[0] = select_rows(
            carray(scores_at, (num_rows, num_experts), np.float32),
            carray(ids_at, (num_rows, top_k), id_type),
            carray(weights_at, (num_rows, top_k), np.float32),
            carray(classes_at, num_rows, np.uint8),
            carray(bias_at, num_biases, np.float32),
            max(carray(budget_at, 1, np.int32)[0], 0),
            min(max(carray(floor_at, 1, np.int32)[0], 0), top_k),
            share,
            demand_rule,
            importance_rule,
            is_refilling,
            weights_rule,
            confidence,
            carray(bin_edges_at, num_bins, np.float64),
            max_vote_base,
            carray(similarity_at, (num_similar, num_similar), np.float32),
            min_similarity,
            carray(contribution_at, num_contributions, np.float32),
            carray(out_ids_at, (num_rows, top_k), id_type),
            carray(out_weights_at, (num_rows, top_k), np.float32),
            carray(retained_at, num_rows, np.float32),
            carray(active_at, num_experts, np.bool_),
        )

    return select_at.ctypes


ENTRIES = {torch.int32: entry(np.int32), torch.int64: entry(np.int64)}


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
    contribution: Tensor | None = None,
) -> Selection:
    share = 1.0 if demand is None else float(demand)
    share = max(share, 0.0) if share < 1.0 else 1.0  # NaN: 1
    scores, topk_ids = scores.contiguous(), topk_ids.contiguous()
    topk_weights, row_class = topk_weights.contiguous(), row_class.contiguous()
    bias = None if correction_bias is None else correction_bias.contiguous()
    similarity = None if similarity is None else similarity.contiguous()
    contribution = None if contribution is None else contribution.contiguous()
    has_bins = policy.importance is Importance.BINS
    bin_edges = np.array(policy.bin_edges, np.float64) if has_bins else NO_BINS
    (num_rows, num_experts), top_k = scores.shape, topk_ids.shape[1]
    out_ids, out_weights = torch.empty_like(topk_ids), torch.empty_like(topk_weights)
    retained = torch.empty(num_rows, device="cpu")
    active = torch.empty(num_experts, dtype=torch.bool, device="cpu")
    num_active = torch.empty((), dtype=torch.int32, device="cpu")
    ENTRIES[topk_ids.dtype](
        scores.data_ptr(),
        topk_ids.data_ptr(),
        topk_weights.data_ptr(),
        row_class.data_ptr(),
        NONE if bias is None else bias.data_ptr(),
        0 if bias is None else num_experts,
        num_rows,
        num_experts,
        top_k,
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
        NONE if contribution is None else contribution.data_ptr(),
        0 if contribution is None else num_experts,
        out_ids.data_ptr(),
        out_weights.data_ptr(),
        retained.data_ptr(),
        active.data_ptr(),
        num_active.data_ptr(),
    )
    return Selection(out_ids, out_weights, active, num_active, retained)
