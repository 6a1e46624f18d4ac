"""Selection on CPU tensors: NumPy on views of them.

At decode sizes an array operation costs its call, and NumPy's calls are two to three times cheaper
than torch's. Sets of experts are boolean [E + 1]: the last entry takes every slot that holds no
routed expert, and stays False.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lynx_kernels.policies import (
    ONE,
    RANK_SLACK,
    REFILL_SHARE,
    SCORE_MAX,
    TIE_ONE,
    VOTE,
    Demand,
    Importance,
    Policy,
    Weights,
)
from lynx_kernels.selection import RowClass, Selection

Array = NDArray[Any]
PAD, FLEXIBLE = int(RowClass.PAD), int(RowClass.FLEXIBLE)
EMPTY = np.iinfo(np.int64).min
COLUMN_BITS = 20


@np.errstate(over="ignore", invalid="ignore")  # weights that are not finite are the caller's
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
) -> Selection:
    ids, weights, classes = topk_ids.numpy(), topk_weights.numpy(), row_class.numpy()
    num_experts = scores.shape[1]
    cap = max(int(budget), 0)
    floor_k = min(max(int(floor), 0), ids.shape[1])
    share = 1.0 if demand is None else float(demand)
    share = max(share, 0.0) if share < 1.0 else 1.0  # NaN: 1

    is_live, is_flexible = classes != PAD, classes == FLEXIBLE
    is_own = (ids >= 0) & (ids < num_experts) & is_live[:, None]
    slots = np.where(is_own, ids, np.intp(num_experts))
    used = _members(slots, num_experts)
    fits = share == 1.0 and policy.demand is not Demand.NONE and int(used.sum()) <= cap
    if policy.demand is Demand.ALL or (cap >= num_experts and share == 1.0) or fits:
        return _unchanged(topk_ids, topk_weights, is_live, used)
    if not is_flexible.any():
        return _unchanged(topk_ids, topk_weights, is_live, used)

    mass = np.where(is_own & (weights > 0) & (weights < np.inf), weights, np.float64(0))
    peak = mass.max(axis=1, keepdims=True)
    fixed = np.rint(mass / np.where(peak > 0, peak, 1.0) * ONE).astype(np.int64)
    order = np.argsort(np.where(is_own, -mass, 1.0), axis=1, kind="stable")
    order += np.arange(0, ids.size, ids.shape[1])[:, None]
    protected, wanted, importance = _demand(
        slots, slots.ravel()[order], fixed.ravel()[order], is_flexible, num_experts,
        floor_k, share, policy,
    )  # fmt: skip
    clean = scores.numpy()
    if policy.importance is Importance.SCORES:
        gates = np.minimum(_clean(clean[is_live]), SCORE_MAX).astype(np.float64)
        importance[:num_experts] = np.rint(gates * ONE).astype(np.int64).sum(axis=0)
        wanted[:num_experts] = True
    allowed = _cut(protected, wanted, importance, cap)

    is_lost = is_own & ~allowed[slots]
    rows = np.flatnonzero(is_lost.any(axis=1))
    if rows.size == 0:
        return _unchanged(topk_ids, topk_weights, is_live, used)
    bias = None if correction_bias is None else correction_bias.numpy()
    out_ids = np.where(is_live[:, None], ids, ids.dtype.type(-1))
    out_weights = np.where(is_live[:, None], weights, np.float32(0))
    out_ids[rows], out_weights[rows] = _rebuild(
        ids[rows], weights[rows], slots[rows], mass[rows], is_lost[rows],
        _clean(clean[rows]), allowed, bias, policy,
    )  # fmt: skip

    in_use = _members(
        np.where((out_ids >= 0) & (out_ids < num_experts), out_ids, np.intp(num_experts)),
        num_experts,
    )
    total = fixed.sum(axis=1)
    kept = np.where(is_lost, 0, fixed).sum(axis=1)
    retained = np.where(total > 0, kept / np.maximum(total, 1), 1.0).astype(np.float32)
    return _selection(
        torch.from_numpy(out_ids), torch.from_numpy(out_weights), in_use, torch.from_numpy(retained)
    )


def _demand(
    slots: Array,
    ranked: Array,
    fixed: Array,
    is_flexible: Array,
    num_experts: int,
    floor_k: int,
    share: float,
    policy: Policy,
) -> tuple[Array, Array, Array]:
    """Protected experts, demanded experts and importance; `ranked`, `fixed` strongest first."""
    protected = _members(ranked[is_flexible, :floor_k], num_experts)
    protected[slots[~is_flexible]] = True
    protected[num_experts] = False
    importance = np.zeros(num_experts + 1, np.int64)
    if policy.demand is Demand.NONE:
        return protected, np.zeros(num_experts + 1, np.bool_), importance

    rank = np.arange(ranked.shape[1])
    total = fixed.sum(axis=1, keepdims=True)
    if share == 1.0:
        is_wanted = np.ones(ranked.shape, np.bool_)
    elif policy.demand is Demand.MASS:
        is_wanted = (fixed.cumsum(axis=1) - fixed < share * total) | (rank < floor_k)
    else:
        num_own = (ranked < num_experts).sum(axis=1, keepdims=True)
        is_wanted = rank < np.maximum(np.ceil(share * num_own - RANK_SLACK), floor_k)
    is_wanted &= is_flexible[:, None]

    part = fixed / np.maximum(total, 1)
    if policy.importance is Importance.SHARE_4:
        part *= part
        votes = np.rint(part * part * ONE)
    elif policy.importance is Importance.SHARE:
        votes = np.rint(part * ONE)
    else:
        votes = np.rint(part * TIE_ONE) + VOTE
    demanded = np.where(is_wanted, ranked, num_experts)
    np.add.at(importance, demanded, votes.astype(np.int64))
    return protected, _members(demanded, num_experts), importance


def _cut(protected: Array, wanted: Array, importance: Array, cap: int) -> Array:
    """Protected experts, then wanted ones by importance (ties by id) up to the cap."""
    contest = wanted & ~protected
    room = max(cap - int(protected.sum()), 0)
    if int(contest.sum()) <= room:
        return protected | wanted
    order = np.argsort(np.where(contest, -importance, 1), kind="stable")
    allowed = protected.copy()
    allowed[order[:room]] = True
    return allowed


def _rebuild(
    ids: Array,
    weights: Array,
    slots: Array,
    mass: Array,
    is_lost: Array,
    scores: Array,
    allowed: Array,
    bias: Array | None,
    policy: Policy,
) -> tuple[Array, Array]:
    """New ids and weights of the rows that lost an expert."""
    num_rows, num_experts = scores.shape
    row = np.arange(num_rows)[:, None]
    refills = np.full(ids.shape, num_experts, np.intp)
    if policy.is_refilling:
        is_free = np.zeros((num_rows, num_experts + 1), np.bool_)
        np.logical_and(scores > 0, allowed[:num_experts], out=is_free[:, :num_experts])
        is_free[row, slots] = False
        best = _ranked_columns(scores if bias is None else scores + bias, is_free[:, :-1])
        turn = np.maximum(is_lost.cumsum(axis=1) - 1, 0)
        refills = np.where(is_lost, best[row, turn], num_experts)
    out_ids = np.where(is_lost, np.where(refills < num_experts, refills, -1), ids)

    is_own = slots < num_experts
    lost = np.where(is_lost, mass, 0.0).sum(axis=1, keepdims=True)
    kept = np.where(is_lost, 0.0, mass).sum(axis=1, keepdims=True)
    total = lost + kept
    out = np.where(is_lost, 0.0, weights)
    if policy.weights is Weights.SURVIVORS:
        scale = np.where(kept > 0, total, 1.0) / np.where(kept > 0, kept, 1.0)
        return out_ids, np.where(is_own & (kept > 0), out * scale, out)
    padded = np.zeros((num_rows, num_experts + 1), np.float64)
    padded[:, :num_experts] = scores
    if policy.weights is Weights.EXACT:
        gates, shared = padded[row, refills], REFILL_SHARE * lost
        is_set = is_lost
    else:
        gates, shared = padded[row, np.where(is_lost, refills, slots)], total
        is_set = is_own
    sums = gates.sum(axis=1, keepdims=True)
    return out_ids, np.where(
        is_set & (sums > 0), gates * (shared / np.where(sums > 0, sums, 1.0)), out
    )


def _ranked_columns(keys: Array, is_free: Array) -> Array:
    """Free columns of each row, highest key first, ties by column; then E for none."""
    num_columns = keys.shape[1]
    bits = keys.view(np.int32).astype(np.int64)
    bits ^= (bits >> 63) & 0x7FFFFFFF  # float order as integer order
    packed = (bits << COLUMN_BITS) | np.arange(num_columns - 1, -1, -1)
    packed = np.sort(np.where(is_free, packed, EMPTY), axis=1)[:, ::-1]
    columns = num_columns - 1 - (packed & ((1 << COLUMN_BITS) - 1))
    return np.where(packed == EMPTY, num_columns, columns)


def _clean(scores: Array) -> Array:
    """Scores with everything that is not a positive finite number set to 0."""
    return np.where((scores > 0) & (scores < np.inf), scores, np.float32(0))


def _members(slots: Array, num_experts: int) -> Array:
    members = np.zeros(num_experts + 1, np.bool_)
    members[slots] = True
    members[num_experts] = False
    return members


def _unchanged(topk_ids: Tensor, topk_weights: Tensor, is_live: Array, used: Array) -> Selection:
    if not is_live.all():
        is_pad = torch.from_numpy(~is_live[:, None])
        topk_ids = topk_ids.masked_fill(is_pad, -1)
        topk_weights = topk_weights.masked_fill(is_pad, 0.0)
    return _selection(
        topk_ids,
        topk_weights,
        used,
        torch.ones(topk_ids.shape[0], dtype=torch.float32, device="cpu"),
    )


def _selection(ids: Tensor, weights: Tensor, used: Array, retained: Tensor) -> Selection:
    return Selection(
        topk_ids=ids,
        topk_weights=weights,
        active=torch.from_numpy(used[:-1]),
        num_active=torch.tensor(int(used.sum()), dtype=torch.int32, device="cpu"),
        retained_mass=retained,
    )
