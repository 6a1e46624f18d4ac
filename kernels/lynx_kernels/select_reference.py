"""Selection as plain loops over rows and experts: what `select` is tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lynx_kernels.policies import (
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
from lynx_kernels.selection import RowClass, Selection


def select_reference(
    scores: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_class: Tensor,
    *,
    budget: Tensor,
    floor: Tensor,
    demand: Tensor | None = None,
    policy: str = "lynx",
    correction_bias: Tensor | None = None,
) -> Selection:
    """Same contract as `select`; unhurried."""
    rules = POLICIES[policy]
    num_experts = scores.shape[1]
    share = 1.0 if demand is None or math.isnan(float(demand)) else float(demand)
    share = min(max(share, 0.0), 1.0)
    ids, weights, classes = topk_ids.tolist(), topk_weights.tolist(), row_class.tolist()
    gates = [[s if 0 < s < math.inf else 0.0 for s in row] for row in scores.tolist()]
    clean = torch.tensor(gates, dtype=torch.float32).reshape(scores.shape)
    ranking = (clean if correction_bias is None else clean + correction_bias).tolist()

    protected: set[int] = set()
    importance: dict[int, int] = {}
    for row_ids, row_weights, kind in zip(ids, weights, classes, strict=True):
        own = strongest_first(row_ids, row_weights, num_experts)
        if kind == RowClass.EXACT:
            protected.update(own)
        elif kind == RowClass.FLEXIBLE:
            protected.update(list(own)[: max(int(floor), 0)])
            for expert, vote in votes(own, share, int(floor), rules).items():
                importance[expert] = importance.get(expert, 0) + vote
    if rules.importance is Importance.SCORES:
        live = [g for g, kind in zip(gates, classes, strict=True) if kind != RowClass.PAD]
        importance = {
            e: sum(round(min(row[e], SCORE_MAX) * ONE) for row in live) for e in range(num_experts)
        }

    allowed = set(protected)
    for expert in sorted(importance, key=lambda e: (-importance[e], e)):
        if rules.demand is Demand.ALL or len(allowed) < int(budget):
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


def votes(own: dict[int, int], share: float, floor: int, rules: Policy) -> dict[int, int]:
    """What a flexible row adds to the importance of each expert that it demands."""
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
        if rules.importance is Importance.SHARE_4:
            result[expert] = round((part * part) * (part * part) * ONE)
        elif rules.importance is Importance.SHARE:
            result[expert] = round(part * ONE)
        else:
            result[expert] = VOTE + round(part * TIE_ONE)
    return result


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
