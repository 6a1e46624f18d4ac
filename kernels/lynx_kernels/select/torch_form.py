"""Selection in torch operations, for any device: no host sync, fixed shapes, capturable.

Budget, floor and demand are read on the device. Sets of experts are boolean [E + 1]: the last entry
takes every slot that holds no routed expert.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lynx_kernels.select.policies import (
    HASH_FACTOR,
    HASH_MASK,
    HASH_SHIFT,
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
from lynx_kernels.select.selection import RowClass, Selection

PAD, FLEXIBLE = int(RowClass.PAD), int(RowClass.FLEXIBLE)
COMMON = (Importance.SCORES, Importance.BINS, Importance.HASH)
EMPTY = torch.iinfo(torch.int64).min
COLUMN_BITS = 20


def select_torch(
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
    """`select` in torch operations."""
    num_experts = scores.shape[1]
    is_pad, is_flexible = (row_class == PAD)[:, None], (row_class == FLEXIBLE)[:, None]
    ids = topk_ids.masked_fill(is_pad, -1)
    weights = topk_weights.masked_fill(is_pad, 0.0)
    is_own = (ids >= 0) & (ids < num_experts)
    slots = ids.long().masked_fill(~is_own, num_experts)  # [M, K]
    if policy.demand is Demand.ALL:
        used = _members(slots, num_experts)
        return _selection(ids, weights, used, torch.ones_like(scores[:, 0]))

    mass = weights.double().masked_fill(~(is_own & (weights > 0) & (weights < math.inf)), 0.0)
    peak = mass.amax(dim=1, keepdim=True)
    fixed = (mass / peak.masked_fill(peak == 0, 1.0) * ONE).round().long()
    gates = scores.masked_fill(~((scores > 0) & (scores < math.inf)), 0.0)  # [M, E]

    order = (-mass).masked_fill(~is_own, 1.0).argsort(dim=1, stable=True)
    ranked, strongest = slots.gather(1, order), fixed.gather(1, order)
    is_floor = torch.arange(ids.shape[1], device=ids.device) < floor
    total = fixed.sum(dim=1, keepdim=True)
    is_sure = strongest[:, :1] >= policy.confidence * total.double()
    floors = ranked.masked_fill(~(is_floor & is_flexible & is_sure), num_experts)
    exact = slots.masked_fill(is_flexible, num_experts)
    protected = _members(torch.cat([floors, exact]), num_experts)
    is_wanted = _is_wanted(ranked, strongest, num_experts, demand, policy) | is_floor
    demanded = ranked.masked_fill(~(is_wanted & is_flexible), num_experts)
    wanted = _members(demanded, num_experts)
    if policy.demand is Demand.NONE:
        wanted = torch.ones_like(protected)
    if policy.importance in COMMON:
        importance = torch.nn.functional.pad(_common_importance(gates, is_pad, policy), (0, 1))
    else:
        importance = _importance(demanded, strongest, num_experts, policy, contribution)
    allowed = _cut(protected, wanted, importance, budget)
    targets = torch.empty(0, dtype=torch.long, device=ids.device)
    if policy.weights is Weights.MOVED:
        assert similarity is not None
        targets, is_alone = _targets(similarity, allowed, policy)
        unlike = ranked.masked_fill(~(is_alone[ranked] & is_flexible), num_experts)
        importance = _importance(unlike, strongest, num_experts, policy)
        allowed = _cut(allowed, _members(unlike, num_experts), importance, budget)

    is_lost = is_own & ~allowed[slots]
    refills = torch.full_like(slots, num_experts)
    if policy.is_refilling:
        ranking = gates if correction_bias is None else gates + correction_bias
        refills = _refills(ranking, gates > 0, slots, is_lost, allowed)
    elif policy.weights is Weights.MOVED:
        moved = targets[slots].masked_fill(~is_lost, num_experts)
        refills = _first_of_each(moved, slots.masked_fill(is_lost, num_experts), num_experts)
    new_ids = torch.where(
        is_lost, refills.masked_fill(refills == num_experts, -1).to(ids.dtype), ids
    )
    chosen = new_ids.long().masked_fill((new_ids < 0) | (new_ids >= num_experts), num_experts)
    if policy.weights is Weights.MOVED:
        new_weights = _moved_weights(weights, mass, moved, chosen, is_lost, num_experts)
    else:
        new_weights = _new_weights(weights, mass, gates, slots, refills, is_own, is_lost, policy)
    total = fixed.sum(dim=1)
    kept = fixed.masked_fill(is_lost, 0).sum(dim=1)
    retained = torch.where(total > 0, kept.double() / total.clamp(min=1), 1.0).float()
    return _selection(new_ids, new_weights, _members(chosen, num_experts), retained)


def _is_wanted(
    ranked: Tensor, fixed: Tensor, num_experts: int, demand: Tensor | None, policy: Policy
) -> Tensor:
    """Own experts that each row insists on, strongest first: bool [M, K]."""
    if demand is None:
        return torch.ones_like(ranked, dtype=torch.bool)
    share = torch.where(demand < 1, demand.clamp(min=0), 1.0).double()  # NaN: 1
    if policy.demand is Demand.MASS:
        before = fixed.cumsum(dim=1) - fixed
        return (before < share * fixed.sum(dim=1, keepdim=True)) | (share == 1)
    num_own = (ranked < num_experts).sum(dim=1, keepdim=True)
    rank = torch.arange(ranked.shape[1], device=ranked.device)
    return rank < (share * num_own - RANK_SLACK).ceil()


def _votes(fixed: Tensor, policy: Policy, gain: Tensor | None) -> Tensor:
    part = fixed.double() / fixed.sum(dim=1, keepdim=True).clamp(min=1)
    if policy.importance is Importance.SHARE_6:
        square = part * part
        part = square * square * square
        return ((part if gain is None else part * gain) * ONE).round().long()
    if policy.importance is Importance.VOTES:
        return (part * TIE_ONE).round().long() + VOTE
    return (part * ONE).round().long()


def _importance(
    demanded: Tensor,
    fixed: Tensor,
    num_experts: int,
    policy: Policy,
    contribution: Tensor | None = None,
) -> Tensor:
    """Votes of the demanded slots, summed by expert: int64 [E + 1]."""
    gain = None
    if contribution is not None:
        is_valid = (contribution >= 0) & (contribution <= 1)
        gain = torch.where(is_valid, contribution, 1.0).double()
        gain = torch.nn.functional.pad(gain, (0, 1))[demanded]
    sums = torch.zeros(num_experts + 1, dtype=torch.int64, device=fixed.device)
    return sums.scatter_add_(0, demanded.flatten(), _votes(fixed, policy, gain).flatten())


def _common_importance(gates: Tensor, is_pad: Tensor, policy: Policy) -> Tensor:
    """Importance of each expert to all rows that are not pads, whoever demands it: int64 [E]."""
    if policy.importance is Importance.SCORES:
        said = (gates.clamp(max=SCORE_MAX).double() * ONE).round().long()
    elif policy.importance is Importance.HASH:
        said = (gates.view(torch.int32).long() * HASH_FACTOR & HASH_MASK) >> HASH_SHIFT
    else:
        best = gates.amax(dim=1, keepdim=True).double()
        edges = torch.tensor(policy.bin_edges, dtype=torch.float64, device=gates.device)
        place = (gates.double()[..., None] < best[..., None] * edges).sum(dim=2)
        base = ((~is_pad).sum() + 1).clamp(max=policy.max_vote_base)
        power = torch.arange(policy.num_bins - 1, -1, -1, device=gates.device)
        vote_of = torch.nn.functional.pad(base**power, (0, 1))
        said = vote_of[place].masked_fill(gates == 0, 0)
    return said.masked_fill(is_pad, 0).sum(dim=0)


def _targets(similarity: Tensor, allowed: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    """For every expert the most similar allowed one, or E without any; and whether even that one is
    too unlike: both [E + 1].
    """
    likeness = similarity.double().masked_fill(~allowed[:-1], -math.inf)
    best, target = likeness.max(dim=1)
    has_any = allowed.any()
    target = torch.where(has_any, target, similarity.shape[0])
    is_alone = (best < policy.min_similarity) | ~has_any
    pad = torch.nn.functional.pad
    return pad(target, (0, 1), value=similarity.shape[0]), pad(is_alone, (0, 1), value=False)


def _first_of_each(moved: Tensor, kept: Tensor, num_experts: int) -> Tensor:
    """Targets [M, K] that no slot of the row holds yet; E for the others."""
    place = torch.arange(moved.shape[1], device=moved.device)
    is_before = place[None, :] < place[:, None]  # [K, K]
    is_same = moved[:, :, None] == moved[:, None, :]
    is_held = (is_same & is_before).any(dim=2) | (moved[:, :, None] == kept[:, None, :]).any(dim=2)
    return moved.masked_fill(is_held, num_experts)


def _moved_weights(
    weights: Tensor, mass: Tensor, moved: Tensor, chosen: Tensor, is_lost: Tensor, num_experts: int
) -> Tensor:
    """Weights after each lost one was added to the slot that holds its target."""
    is_met = (chosen[:, :, None] == moved[:, None, :]) & (moved < num_experts)[:, None, :]
    added = (mass[:, None, :] * is_met).sum(dim=2)
    own = weights.masked_fill(is_lost, 0.0)
    return torch.where(added > 0, (own.double() + added).float(), own)


def _cut(protected: Tensor, wanted: Tensor, importance: Tensor, budget: Tensor) -> Tensor:
    """Protected experts, then wanted ones by importance (ties by id) up to the budget."""
    is_contest = wanted & ~protected
    is_contest[-1] = False
    order = (-importance).masked_fill(~is_contest, 1).argsort(stable=True)
    place = torch.arange(order.shape[0], device=order.device)
    rank = torch.empty_like(order).scatter_(0, order, place)
    return protected | (is_contest & (rank < budget - protected.sum()))


def _refills(
    ranking: Tensor, is_usable: Tensor, slots: Tensor, is_lost: Tensor, allowed: Tensor
) -> Tensor:
    """For each lost slot in turn the best free active expert, E where there is none."""
    num_experts = ranking.shape[1]
    is_taken = torch.zeros(ranking.shape[0], num_experts + 1, dtype=torch.bool, device=slots.device)
    is_taken.scatter_(1, slots, True)
    is_free = is_usable & allowed[:-1] & ~is_taken[:, :-1]
    bits = ranking.view(torch.int32).long()
    bits = bits ^ ((bits >> 63) & 0x7FFFFFFF)  # float order as integer order
    column = torch.arange(num_experts - 1, -1, -1, device=slots.device)
    packed = ((bits << COLUMN_BITS) | column).masked_fill(~is_free, EMPTY)
    best = packed.topk(min(slots.shape[1], num_experts), dim=1).values
    columns = num_experts - 1 - (best & ((1 << COLUMN_BITS) - 1))
    columns = columns.masked_fill(best == EMPTY, num_experts)
    turn = (is_lost.cumsum(dim=1) - 1).clamp(min=0)
    return columns.gather(1, turn).masked_fill(~is_lost, num_experts)


def _new_weights(
    weights: Tensor,
    mass: Tensor,
    gates: Tensor,
    slots: Tensor,
    refills: Tensor,
    is_own: Tensor,
    is_lost: Tensor,
    policy: Policy,
) -> Tensor:
    """Weights of the rows that lost an expert; the others keep theirs."""
    is_changed = is_lost.any(dim=1, keepdim=True)
    lost = mass.masked_fill(~is_lost, 0.0).sum(dim=1, keepdim=True)
    kept = mass.masked_fill(is_lost, 0.0).sum(dim=1, keepdim=True)
    total = lost + kept
    survivors = weights.masked_fill(is_lost, 0.0)
    if policy.weights is Weights.SURVIVORS:
        scaled = (survivors.double() * (total / kept.masked_fill(kept == 0, 1.0))).float()
        return torch.where(is_changed & is_own & (kept > 0), scaled, survivors)
    padded = torch.nn.functional.pad(gates.double(), (0, 1))
    if policy.weights is Weights.EXACT:
        gate, shared = padded.gather(1, refills), REFILL_SHARE * lost
        is_set = is_lost
    else:
        gate, shared = padded.gather(1, torch.where(is_lost, refills, slots)), total
        is_set = is_changed & is_own
    gate_sum = gate.sum(dim=1, keepdim=True)
    fresh = (gate * (shared / gate_sum.masked_fill(gate_sum == 0, 1.0))).float()
    return torch.where(is_set & (gate_sum > 0), fresh, survivors)


def _members(slots: Tensor, num_experts: int) -> Tensor:
    members = torch.zeros(num_experts + 1, dtype=torch.bool, device=slots.device)
    members.scatter_(0, slots.flatten(), True)
    members[-1] = False
    return members


def _selection(ids: Tensor, weights: Tensor, used: Tensor, retained: Tensor) -> Selection:
    return Selection(
        topk_ids=ids,
        topk_weights=weights,
        active=used[:-1],
        num_active=used.sum(dtype=torch.int32),
        retained_mass=retained,
    )
