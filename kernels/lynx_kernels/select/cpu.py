"""Selection on CPU tensors: the compiled rows of `cpu_kernels.py`, called by address.

A step selects in every layer, so an array library's calls would cost more than the experts that
selection saves. Compiled loops cost a tenth of that, and array objects for them as much again.
"""

from __future__ import annotations

import zlib
from ctypes import Structure, addressof, c_bool, c_double, c_int64
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import carray, cfunc, types
from numba.extending import intrinsic
from torch import Tensor

from lynx_kernels.select.cpu_kernels import select_rows
from lynx_kernels.select.policies import Demand, Importance, Policy, Weights
from lynx_kernels.select.selection import Selection

DEMANDS, IMPORTANCES, WEIGHTS = list(Demand), list(Importance), list(Weights)
# Files whose code and constants are compiled into an entry. numba's cache watches this one alone.
SOURCES = ("policies.py", "cpu_kernels.py", "cpu_peers.py")


class Rules(Structure):
    """A policy as compiled code reads it; enums are positions of their members."""

    _fields_ = (
        ("demand", c_int64),
        ("importance", c_int64),
        ("weights", c_int64),
        ("is_refilling", c_bool),
        ("confidence", c_double),
        ("bin_edges", c_int64),  # address of float64 [num_bins]
        ("num_bins", c_int64),
        ("max_vote_base", c_int64),
        ("min_similarity", c_double),
    )
    edges: np.ndarray[Any, Any]  # what `bin_edges` points to


class Batch(Structure):
    """One call: addresses of contiguous arrays, and their sizes."""

    _fields_ = (
        ("scores", c_int64),  # float32 [M, E]
        ("topk_ids", c_int64),  # int32 or int64 [M, K]
        ("topk_weights", c_int64),  # float32 [M, K]
        ("row_class", c_int64),  # uint8 [M]
        ("budget", c_int64),  # int32 []
        ("floor", c_int64),  # int32 []
        ("bias", c_int64),  # float32 [num_biases]
        ("similarity", c_int64),  # float32 [num_similar, num_similar]
        ("contribution", c_int64),  # float32 [num_contributions]
        ("out_ids", c_int64),  # as topk_ids
        ("out_weights", c_int64),  # float32 [M, K]
        ("retained_mass", c_int64),  # float32 [M]
        ("active", c_int64),  # bool [E]
        ("num_active", c_int64),  # int32 []
        ("num_rows", c_int64),  # M
        ("num_experts", c_int64),  # E
        ("top_k", c_int64),  # K
        ("num_biases", c_int64),  # E, or 0 where none is given; so are the next two
        ("num_similar", c_int64),
        ("num_contributions", c_int64),
        ("share", c_double),  # demand
    )


RULES, BATCH = np.dtype(Rules), np.dtype(Batch)


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """The pointer of an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


def version() -> int:
    """Checksum of the sources."""
    here = Path(__file__)
    return zlib.crc32(b"".join(here.with_name(name).read_bytes() for name in SOURCES))


def entry(id_type: type[np.signedinteger[Any]]) -> Any:
    """Compiled `select_rows` of the `Batch` and `Rules` at two addresses, for ids of this type."""
    compiled_from = version()

    @cfunc("void(voidptr, voidptr)", cache=True)
    def select_at(batch_at: Any, rules_at: Any) -> None:
        _ = compiled_from  # values of the closure are part of the cache's key
        batch, rules = carray(batch_at, 1, BATCH)[0], carray(rules_at, 1, RULES)[0]
        num_rows, num_experts, top_k = batch.num_rows, batch.num_experts, batch.top_k
        num_active = carray(pointer(batch.num_active), 1, np.int32)
        similar = (batch.num_similar, batch.num_similar)
        num_active[0] = select_rows(
            carray(pointer(batch.scores), (num_rows, num_experts), np.float32),
            carray(pointer(batch.topk_ids), (num_rows, top_k), id_type),
            carray(pointer(batch.topk_weights), (num_rows, top_k), np.float32),
            carray(pointer(batch.row_class), num_rows, np.uint8),
            carray(pointer(batch.bias), batch.num_biases, np.float32),
            carray(pointer(batch.similarity), similar, np.float32),
            carray(pointer(batch.contribution), batch.num_contributions, np.float32),
            max(carray(pointer(batch.budget), 1, np.int32)[0], 0),
            min(max(carray(pointer(batch.floor), 1, np.int32)[0], 0), top_k),
            batch.share,
            rules,
            carray(pointer(rules.bin_edges), rules.num_bins, np.float64),
            carray(pointer(batch.out_ids), (num_rows, top_k), id_type),
            carray(pointer(batch.out_weights), (num_rows, top_k), np.float32),
            carray(pointer(batch.retained_mass), num_rows, np.float32),
            carray(pointer(batch.active), num_experts, np.bool_),
        )

    return select_at.ctypes


ENTRIES = {torch.int32: entry(np.int32), torch.int64: entry(np.int64)}


@cache
def rules_of(policy: Policy) -> Rules:
    has_bins = policy.importance is Importance.BINS
    edges = np.array(policy.bin_edges if has_bins else (), np.float64)
    rules = Rules(
        demand=DEMANDS.index(policy.demand),
        importance=IMPORTANCES.index(policy.importance),
        weights=WEIGHTS.index(policy.weights),
        is_refilling=policy.is_refilling,
        confidence=policy.confidence,
        bin_edges=edges.ctypes.data,
        num_bins=len(edges),
        max_vote_base=policy.max_vote_base,
        min_similarity=policy.min_similarity,
    )
    rules.edges = edges
    return rules


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
    """`select` on CPU tensors."""
    share = 1.0 if demand is None else float(demand)
    share = max(share, 0.0) if share < 1.0 else 1.0  # NaN: 1
    scores, topk_ids = scores.contiguous(), topk_ids.contiguous()
    topk_weights, row_class = topk_weights.contiguous(), row_class.contiguous()
    (num_rows, num_experts), top_k = scores.shape, topk_ids.shape[1]
    out_ids, out_weights = torch.empty_like(topk_ids), torch.empty_like(topk_weights)
    retained = torch.empty(num_rows, device="cpu")
    active = torch.empty(num_experts, dtype=torch.bool, device="cpu")
    num_active = torch.empty((), dtype=torch.int32, device="cpu")
    batch = Batch(
        scores=scores.data_ptr(),
        topk_ids=topk_ids.data_ptr(),
        topk_weights=topk_weights.data_ptr(),
        row_class=row_class.data_ptr(),
        budget=budget.data_ptr(),
        floor=floor.data_ptr(),
        out_ids=out_ids.data_ptr(),
        out_weights=out_weights.data_ptr(),
        retained_mass=retained.data_ptr(),
        active=active.data_ptr(),
        num_active=num_active.data_ptr(),
        num_rows=num_rows,
        num_experts=num_experts,
        top_k=top_k,
        share=share,
    )
    if correction_bias is not None:
        correction_bias = correction_bias.contiguous()  # lives until the call below
        batch.bias, batch.num_biases = correction_bias.data_ptr(), num_experts
    if similarity is not None:
        similarity = similarity.contiguous()
        batch.similarity, batch.num_similar = similarity.data_ptr(), num_experts
    if contribution is not None:
        contribution = contribution.contiguous()
        batch.contribution, batch.num_contributions = contribution.data_ptr(), num_experts
    ENTRIES[topk_ids.dtype](addressof(batch), addressof(rules_of(policy)))
    return Selection(out_ids, out_weights, active, num_active, retained)
