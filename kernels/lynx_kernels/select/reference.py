"""Selection as plain loops over rows and experts: the definition of `select`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lynx_kernels.select.policies import (
    HASH_FACTOR,
    HASH_MASK,
    HASH_SHIFT,
    ONE,
    POLICIES,
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


def select_reference(
    scores: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_class: Tensor,
    *,
    budget: Tensor,
    floor: Tensor,
    demand: Tensor | None = None,
    policy: str | Policy = "lynx",
    correction_bias: Tensor | None = None,
    similarity: Tensor | None = None,
    contribution: Tensor | None = None,
) -> Selection:
    """`select`, without regard to speed."""
    rules = policy if isinstance(policy, Policy) else POLICIES[policy]
    num_experts = scores.shape[1]
    share = 1.0 if demand is None or math.isnan(float(demand)) else float(demand)
    share = min(max(share, 0.0), 1.0)
    ids, weights, classes = topk_ids.tolist(), topk_weights.tolist(), row_class.tolist()
    gates = [[s if 0 < s < math.inf else 0.0 for s in row] for row in scores.tolist()]
    clean = torch.tensor(gates, dtype=torch.float32).reshape(scores.shape)
    ranking = (clean if correction_bias is None else clean + correction_bias).tolist()

    gains = [1.0] * num_experts if contribution is None else contribution.tolist()

    protected: set[int] = set()
    importance: dict[int, int] = {}
    for row_ids, row_weights, kind in zip(ids, weights, classes, strict=True):
        own = strongest_first(row_ids, row_weights, num_experts)
        if kind == RowClass.EXACT:
            protected.update(own)
        elif kind == RowClass.FLEXIBLE:
            if next(iter(own.values()), 0) >= rules.confidence * sum(own.values()):
                protected.update(list(own)[: max(int(floor), 0)])
            for expert, vote in votes(own, share, int(floor), rules, gains).items():
                importance[expert] = importance.get(expert, 0) + vote
    live = [row for row, kind in zip(gates, classes, strict=True) if kind != RowClass.PAD]
    demanded = range(num_experts) if rules.demand is Demand.NONE else list(importance)
    if rules.importance in (Importance.SCORES, Importance.BINS, Importance.HASH):
        importance = {e: common_importance(e, live, rules) for e in demanded}

    allowed = set(protected)
    for expert in sorted(importance, key=lambda e: (-importance[e], e)):
        if rules.demand is Demand.ALL or len(allowed) < int(budget):
            allowed.add(expert)
    moves: dict[int, int] = {}
    if rules.weights is Weights.MOVED:
        assert similarity is not None
        own_experts: dict[int, int] = {}
        for row_ids, row_weights, kind in zip(ids, weights, classes, strict=True):
            if kind == RowClass.FLEXIBLE:
                own = strongest_first(row_ids, row_weights, num_experts)
                for expert, vote in votes(own, 1.0, 0, rules, gains).items():
                    own_experts[expert] = own_experts.get(expert, 0) + vote
        likeness = similarity.tolist()
        moves = most_similar(likeness, allowed)
        for expert in sorted(own_experts, key=lambda e: (-own_experts[e], e)):
            is_alone = expert not in moves or likeness[expert][moves[expert]] < rules.min_similarity
            if is_alone and len(allowed) < int(budget):
                allowed.add(expert)

    active: set[int] = set()
    retained: list[float] = []
    for r, kind in enumerate(classes):
        retained.append(1.0)
        if kind == RowClass.PAD:
            ids[r], weights[r] = [-1] * len(ids[r]), [0.0] * len(ids[r])
        elif kind == RowClass.FLEXIBLE:
            own = strongest_first(ids[r], weights[r], num_experts)
            if sum(own.values()):
                kept_mass = sum(mass for expert, mass in own.items() if expert in allowed)
                retained[r] = kept_mass / sum(own.values())
            if not allowed.issuperset(own):
                if rules.weights is Weights.MOVED:
                    ids[r], weights[r] = move(ids[r], weights[r], allowed, moves, num_experts)
                else:
                    ids[r], weights[r] = rebuild(
                        ids[r], weights[r], gates[r], ranking[r], allowed, rules
                    )
        active.update(e for e in ids[r] if 0 <= e < num_experts)

    return Selection(
        topk_ids=torch.tensor(ids, dtype=topk_ids.dtype).reshape(topk_ids.shape),
        topk_weights=torch.tensor(weights, dtype=torch.float32).reshape(topk_ids.shape),
        active=torch.tensor([e in active for e in range(num_experts)]),
        num_active=torch.tensor(len(active), dtype=torch.int32),
        retained_mass=torch.tensor(retained, dtype=torch.float32),
    )


def finite(weight: float) -> float:
    return weight if 0 < weight < math.inf else 0.0


def strongest_first(ids: list[int], weights: list[float], num_experts: int) -> dict[int, int]:
    """A row's own experts by falling weight (ties by position), with their fixed-point mass."""
    own = {e: finite(w) for e, w in zip(ids, weights, strict=True) if 0 <= e < num_experts}
    peak = max(own.values(), default=0.0) or 1.0
    ranked = sorted(own, key=lambda e: -own[e])
    return {e: round(own[e] / peak * ONE) for e in ranked}


def votes(
    own: dict[int, int], share: float, floor: int, rules: Policy, gains: list[float]
) -> dict[int, int]:
    """The votes of a flexible row, by the experts that it demands."""
    total = sum(own.values())
    before = 0
    result: dict[int, int] = {}
    for rank, (expert, mass) in enumerate(own.items()):
        is_demanded = {
            Demand.ALL: True,
            Demand.MASS: share == 1 or before < share * total or rank < floor,
            Demand.RANK: rank < max(math.ceil(share * len(own) - RANK_SLACK), floor),
            Demand.NONE: False,
        }[rules.demand]
        before += mass
        part = mass / total if total else 0.0
        if not is_demanded:
            continue
        if rules.importance is Importance.SHARE_6:
            gain = gains[expert] if 0 <= gains[expert] <= 1 else 1.0
            square = part * part
            result[expert] = round(square * square * square * gain * ONE)
        elif rules.importance is Importance.VOTES:
            result[expert] = VOTE + round(part * TIE_ONE)
        else:
            result[expert] = round(part * ONE)
    return result


def common_importance(expert: int, gates: list[list[float]], rules: Policy) -> int:
    """Importance of an expert to all rows that are not pads, whoever demands it."""
    if rules.importance is Importance.SCORES:
        return sum(round(min(row[expert], SCORE_MAX) * ONE) for row in gates)
    if rules.importance is Importance.HASH:
        bits = torch.tensor([row[expert] for row in gates], dtype=torch.float32).view(torch.int32)
        return sum((b * HASH_FACTOR & HASH_MASK) >> HASH_SHIFT for b in bits.tolist())
    base = min(len(gates) + 1, rules.max_vote_base)
    total = 0
    for row in gates:
        place = sum(row[expert] < max(row) * edge for edge in rules.bin_edges)
        if row[expert] > 0 and place < rules.num_bins:
            total += base ** (rules.num_bins - 1 - place)
    return total


def most_similar(similarity: list[list[float]], allowed: set[int]) -> dict[int, int]:
    """For every expert the allowed one that is most like it, ties by lower id."""
    targets = sorted(allowed)
    return {e: max(targets, key=lambda f: row[f]) for e, row in enumerate(similarity) if targets}


def move(
    ids: list[int],
    weights: list[float],
    allowed: set[int],
    moves: dict[int, int],
    num_experts: int,
) -> tuple[list[int], list[float]]:
    """A row whose lost weights move to other experts; weights that meet add up."""
    new_ids, new_weights = list(ids), list(weights)
    for slot, expert in enumerate(ids):
        if not 0 <= expert < num_experts or expert in allowed:
            continue
        target = moves.get(expert, -1)
        new_ids[slot], new_weights[slot] = -1, 0.0
        if target >= 0 and target not in new_ids:
            new_ids[slot] = target
        if target >= 0:
            new_weights[new_ids.index(target)] += finite(weights[slot])
    return new_ids, new_weights


def rebuild(
    ids: list[int],
    weights: list[float],
    gates: list[float],
    ranking: list[float],
    allowed: set[int],
    rules: Policy,
) -> tuple[list[int], list[float]]:
    """A row that lost an expert: refills in its lost slots, and new weights."""
    routed = range(len(gates))
    lost = [i for i, e in enumerate(ids) if e in routed and e not in allowed]
    kept = [i for i, e in enumerate(ids) if e in routed and e in allowed]
    free = [e for e in allowed if e not in ids and gates[e] > 0]
    free.sort(key=lambda e: (-ranking[e], e))
    if not rules.is_refilling:
        free = []
    new_ids, new_weights = list(ids), list(weights)
    for turn, i in enumerate(lost):
        new_ids[i], new_weights[i] = (free[turn] if turn < len(free) else -1), 0.0

    lost_mass = sum(finite(weights[i]) for i in lost)
    kept_mass = sum(finite(weights[i]) for i in kept)
    if rules.weights is Weights.SURVIVORS:
        for i in kept:
            if kept_mass:
                new_weights[i] = weights[i] * (lost_mass + kept_mass) / kept_mass
        return new_ids, new_weights
    is_exact = rules.weights is Weights.EXACT
    changed = [i for i in (lost if is_exact else lost + kept) if new_ids[i] >= 0]
    mass = REFILL_SHARE * lost_mass if is_exact else lost_mass + kept_mass
    gate_sum = sum(gates[new_ids[i]] for i in changed)
    for i in changed:
        if gate_sum:
            new_weights[i] = mass * gates[new_ids[i]] / gate_sum
    return new_ids, new_weights
