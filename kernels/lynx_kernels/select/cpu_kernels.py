"""Selection on a CPU, compiled: one pass over the rows to demand, one to rebuild."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lynx_kernels.select.cpu_peers import (
    SCORES,
    common_importance,
    find_alone,
    find_targets,
    finite,
    move_row,
)
from lynx_kernels.select.policies import ONE, RANK_SLACK, REFILL_SHARE, TIE_ONE, VOTE
from lynx_kernels.select.selection import RowClass

Array = NDArray[Any]
PAD, FLEXIBLE = int(RowClass.PAD), int(RowClass.FLEXIBLE)
# Positions of the enums' members, as in `Rules` of cpu.py.
ALL, MASS, RANK, NONE = 0, 1, 2, 3
SHARE_6, SHARE, VOTES = 0, 1, 2
EXACT_WEIGHTS, SURVIVORS, SCALED, MOVED = 0, 1, 2, 3


@njit
def demand_row(
    ids: Array,  # [K]
    weights: Array,  # [K]
    share: float,
    floor_k: int,
    rules: Any,  # `Rules`
    contribution: Array,  # [E] or [0]
    fixed: Array,  # [K] out: fixed-point mass
    protected: Array,  # [E] in, out
    wanted: Array,  # [E] in, out
    importance: Array,  # [E] in, out
) -> None:
    """Add a flexible row's floor to `protected`, and its demands and their votes."""
    num_experts = protected.shape[0]
    order = np.empty(ids.shape[0], np.int64)  # own slots, strongest first, ties by position
    num_own, peak = 0, 0.0
    for k in range(ids.shape[0]):
        if 0 <= ids[k] < num_experts:
            mass, j = finite(weights[k]), num_own
            peak = max(peak, mass)
            while j > 0 and finite(weights[order[j - 1]]) < mass:
                order[j] = order[j - 1]
                j -= 1
            order[j] = k
            num_own += 1
    total = 0
    for rank in range(num_own):
        k = order[rank]
        mass = np.float64(finite(weights[k])) / (peak if peak > 0.0 else 1.0)
        fixed[k] = np.int64(np.rint(mass * ONE))
        total += fixed[k]
    num_ranked = max(np.ceil(share * num_own - RANK_SLACK), floor_k)
    before = 0
    has_floor = num_own > 0 and fixed[order[0]] >= rules.confidence * total
    for rank in range(num_own):
        k = order[rank]
        expert = ids[k]
        if rank < floor_k and has_floor:
            protected[expert] = True
        if rules.demand == MASS:
            is_demanded = share == 1.0 or before < share * total or rank < floor_k
        else:
            is_demanded = rules.demand == RANK and rank < num_ranked
        before += fixed[k]
        if not is_demanded:
            continue
        wanted[expert] = True
        part = fixed[k] / total if total > 0 else 0.0
        if rules.importance == SHARE_6:
            gain = np.float64(contribution[expert]) if contribution.shape[0] else 1.0
            if not 0.0 <= gain <= 1.0:
                gain = 1.0
            square = part * part
            importance[expert] += np.int64(np.rint(square * square * square * gain * ONE))
        elif rules.importance == VOTES:
            importance[expert] += VOTE + np.int64(np.rint(part * TIE_ONE))
        else:
            importance[expert] += np.int64(np.rint(part * ONE))


@njit
def cut(protected: Array, wanted: Array, importance: Array, cap: int) -> Array:
    """Protected experts, then wanted ones by importance (ties by id) up to the cap: [E] bool."""
    allowed = protected.copy()
    contest = np.flatnonzero(wanted & ~protected)
    room = max(cap - protected.sum(), 0)
    if contest.shape[0] > room:
        contest = contest[np.argsort(-importance[contest], kind="mergesort")[:room]]
    for expert in contest:
        allowed[expert] = True
    return allowed


@njit
def keep_unlike(
    ids: Array,  # [M, K]
    fixed: Array,  # [M, K]
    classes: Array,  # [M]
    similarity: Array,  # [E, E]
    min_similarity: float,
    targets: Array,  # [E]
    allowed: Array,  # [E]
    cap: int,
) -> Array:
    """Allowed experts, and own ones that are like none of these, by share, up to the cap: [E]."""
    wanted = np.zeros(allowed.shape[0], np.bool_)
    importance = np.zeros(allowed.shape[0], np.int64)
    alone = find_alone(similarity, targets, min_similarity)
    for r in range(ids.shape[0]):
        if classes[r] != FLEXIBLE:
            continue
        total = fixed[r].sum()
        for k in range(ids.shape[1]):
            if 0 <= ids[r, k] < allowed.shape[0] and alone[ids[r, k]]:
                part = fixed[r, k] / total if total > 0 else 0.0
                importance[ids[r, k]] += np.int64(np.rint(part * ONE))
                wanted[ids[r, k]] = True
    result: Array = cut(allowed, wanted, importance, cap)
    return result


@njit
def rebuild_row(
    ids: Array,  # [K]
    weights: Array,  # [K]
    scores: Array,  # [E]
    bias: Array,  # [E] or [0]
    allowed: Array,  # [E]
    rules: Any,  # `Rules`
    out_ids: Array,  # [K] out
    out_weights: Array,  # [K] out
) -> None:
    """Refill a row's lost slots and set its weights."""
    top_k, num_experts = ids.shape[0], scores.shape[0]
    is_taken = ~allowed
    lost_mass, kept_mass = 0.0, 0.0
    for k in range(top_k):
        out_ids[k], out_weights[k] = ids[k], weights[k]
        if 0 <= ids[k] < num_experts:
            if allowed[ids[k]]:
                kept_mass += finite(weights[k])
            else:
                lost_mass += finite(weights[k])
            is_taken[ids[k]] = True
    gate_sum = 0.0
    for k in range(top_k):
        if not 0 <= ids[k] < num_experts:
            continue
        if allowed[ids[k]]:
            if rules.weights != EXACT_WEIGHTS:
                gate_sum += finite(scores[ids[k]])
            continue
        best, best_key = -1, np.float32(0.0)
        if rules.is_refilling:
            for expert in range(num_experts):
                if not is_taken[expert] and finite(scores[expert]) > 0.0:
                    key = scores[expert] + bias[expert] if bias.shape[0] else scores[expert]
                    if best < 0 or key > best_key:
                        best, best_key = expert, key
        out_ids[k], out_weights[k] = best, 0.0
        if best >= 0:
            is_taken[best] = True
            gate_sum += finite(scores[best])
    mass = REFILL_SHARE * lost_mass if rules.weights == EXACT_WEIGHTS else lost_mass + kept_mass
    for k in range(top_k):
        if not 0 <= ids[k] < num_experts:
            continue
        is_kept = allowed[ids[k]]
        if rules.weights == SURVIVORS:
            if is_kept and kept_mass > 0.0:
                out_weights[k] = weights[k] * ((lost_mass + kept_mass) / kept_mass)
        elif (
            out_ids[k] >= 0 and gate_sum > 0.0 and not (is_kept and rules.weights == EXACT_WEIGHTS)
        ):
            out_weights[k] = finite(scores[out_ids[k]]) * (mass / gate_sum)


@njit
def select_rows(
    scores: Array,  # [M, E]
    ids: Array,  # [M, K]
    weights: Array,  # [M, K]
    classes: Array,  # [M]
    bias: Array,  # [E] or [0]
    similarity: Array,  # [E, E] or [0, 0]
    contribution: Array,  # [E] or [0]
    cap: int,
    floor_k: int,
    share: float,
    rules: Any,  # `Rules`
    bin_edges: Array,  # [num_bins]
    out_ids: Array,  # [M, K] out
    out_weights: Array,  # [M, K] out
    retained: Array,  # [M] out
    active: Array,  # [E] out
) -> int:
    """All rows; returns T."""
    num_rows, top_k = ids.shape
    num_experts = scores.shape[1]
    protected = np.zeros(num_experts, np.bool_)
    wanted = np.zeros(num_experts, np.bool_)
    importance = np.zeros(num_experts, np.int64)
    fixed = np.zeros((num_rows, top_k), np.int64)
    for r in range(num_rows):
        if classes[r] == FLEXIBLE:
            demand_row(
                ids[r], weights[r], share, floor_k, rules, contribution, fixed[r], protected,
                wanted, importance,
            )  # fmt: skip
        elif classes[r] != PAD:
            for k in range(top_k):
                if 0 <= ids[r, k] < num_experts:
                    protected[ids[r, k]] = True
    if rules.importance >= SCORES:
        importance = common_importance(scores, classes, rules, bin_edges)
    if rules.demand == NONE:
        wanted[:] = True
    if rules.demand == ALL:
        protected[:] = True
    allowed = cut(protected, wanted, importance, cap)
    targets = np.empty(0, np.int64)
    if rules.weights == MOVED:
        targets = find_targets(similarity, allowed)
        allowed = keep_unlike(
            ids, fixed, classes, similarity, rules.min_similarity, targets, allowed, cap
        )

    active[:] = False
    for r in range(num_rows):
        retained[r] = 1.0
        if classes[r] == PAD:
            out_ids[r], out_weights[r] = -1, 0.0
            continue
        kept, total, is_whole = 0, 0, True
        for k in range(top_k):
            if classes[r] == FLEXIBLE and 0 <= ids[r, k] < num_experts:
                total += fixed[r, k]
                if allowed[ids[r, k]]:
                    kept += fixed[r, k]
                else:
                    is_whole = False
        if is_whole:
            out_ids[r], out_weights[r] = ids[r], weights[r]
        else:
            retained[r] = kept / total if total > 0 else 1.0
            if rules.weights == MOVED:
                move_row(ids[r], weights[r], allowed, targets, out_ids[r], out_weights[r])
            else:
                rebuild_row(
                    ids[r], weights[r], scores[r], bias, allowed, rules, out_ids[r], out_weights[r],
                )  # fmt: skip
        for k in range(top_k):
            if 0 <= out_ids[r, k] < num_experts:
                active[out_ids[r, k]] = True
    num_active: int = active.sum()
    return num_active
