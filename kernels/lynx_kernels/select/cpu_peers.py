"""Selection on a CPU, compiled: the parts that only policies for comparison need."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lynx_kernels.select.policies import HASH_FACTOR, HASH_MASK, HASH_SHIFT, ONE, SCORE_MAX
from lynx_kernels.select.selection import RowClass

Array = NDArray[Any]
PAD = int(RowClass.PAD)
# Positions of the members of `Importance` whose sums are over all rows (`Rules` in cpu.py).
SCORES, BINS, HASH = 3, 4, 5


@njit
def finite(value: float) -> float:
    return value if 0.0 < value < np.inf else 0.0


@njit
def count_bins(
    gates: Array,  # [E], clean
    edges: Array,  # [num_bins], falling
    vote_of: Array,  # [num_bins]
    importance: Array,  # [E] in, out
) -> None:
    """Add a row's vote for every expert whose score is in one of its bins."""
    best = np.float64(gates.max())
    for expert in range(gates.shape[0]):
        gate = np.float64(gates[expert])
        place = 0
        while place < edges.shape[0] and gate < best * edges[place]:
            place += 1
        if gate > 0.0 and place < edges.shape[0]:
            importance[expert] += vote_of[place]


@njit
def count_noise(gates: Array, importance: Array) -> None:
    """Add noise that follows from a row's clean scores [E] to every expert's importance [E]."""
    bits = gates.view(np.int32)
    for expert in range(gates.shape[0]):
        noise = np.int64(bits[expert]) * HASH_FACTOR & HASH_MASK
        importance[expert] += noise >> HASH_SHIFT


@njit
def common_importance(
    scores: Array,  # [M, E]
    classes: Array,  # [M]
    rules: Any,  # `Rules`
    bin_edges: Array,  # [num_bins]
) -> Array:
    """Importance [E] of each expert to all rows that are not pads, whoever demands it."""
    importance = np.zeros(scores.shape[1], np.int64)
    base = min((classes != PAD).sum() + 1, rules.max_vote_base)
    vote_of = np.ones(bin_edges.shape[0], np.int64)
    for place in range(bin_edges.shape[0] - 2, -1, -1):
        vote_of[place] = vote_of[place + 1] * base
    gates = np.empty(scores.shape[1], np.float32)
    for r in range(scores.shape[0]):
        if classes[r] == PAD:
            continue
        for expert in range(scores.shape[1]):
            gates[expert] = finite(scores[r, expert])
            if rules.importance == SCORES:
                gate = np.float64(min(gates[expert], SCORE_MAX))
                importance[expert] += np.int64(np.rint(gate * ONE))
        if rules.importance == BINS:
            count_bins(gates, bin_edges, vote_of, importance)
        elif rules.importance == HASH:
            count_noise(gates, importance)
    return importance


@njit
def find_targets(similarity: Array, allowed: Array) -> Array:
    """The most similar allowed expert of every expert, ties by lower id, or -1: [E]."""
    targets = np.full(allowed.shape[0], -1, np.int64)
    for expert in range(allowed.shape[0]):
        for other in range(allowed.shape[0]):
            best = targets[expert]
            if allowed[other] and (
                best < 0 or similarity[expert, other] > similarity[expert, best]
            ):
                targets[expert] = other
    return targets


@njit
def find_alone(similarity: Array, targets: Array, min_similarity: float) -> Array:
    """Experts without a target, or with one that is too unlike: [E] bool."""
    alone = targets < 0
    for expert in range(targets.shape[0]):
        if targets[expert] >= 0 and similarity[expert, targets[expert]] < min_similarity:
            alone[expert] = True
    return alone


@njit
def move_row(
    ids: Array,  # [K]
    weights: Array,  # [K]
    allowed: Array,  # [E]
    targets: Array,  # [E]
    out_ids: Array,  # [K] out
    out_weights: Array,  # [K] out
) -> None:
    """Move a row's lost weights to their experts' targets; weights that meet add up."""
    top_k, num_experts = ids.shape[0], allowed.shape[0]
    sums = np.zeros(top_k, np.float64)
    for k in range(top_k):
        is_lost = 0 <= ids[k] < num_experts and not allowed[ids[k]]
        out_ids[k] = -1 if is_lost else ids[k]
        out_weights[k] = 0.0 if is_lost else weights[k]
    for k in range(top_k):
        if not 0 <= ids[k] < num_experts or allowed[ids[k]]:
            continue
        target = targets[ids[k]]
        place = -1
        for j in range(top_k):
            if target >= 0 and out_ids[j] == target:
                place = j
        if place < 0 and target >= 0:
            out_ids[k], place = target, k
        if place >= 0 and 0.0 < weights[k] < np.inf:
            sums[place] += weights[k]
    for k in range(top_k):
        if sums[k] > 0.0:
            out_weights[k] = np.float64(out_weights[k]) + sums[k]
