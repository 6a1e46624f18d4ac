"""Selection inside a model's layers, step by step of M rows as in serving."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lynx_kernels import Policy, RowClass, select
from models.experts import Experts


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a policy's curve: the three numbers that `select` takes; None: no bound."""

    policy: Policy
    budget: int | tuple[int, ...] | None = None  # a tuple: one for each layer
    demand: float | None = None
    floor: int = 1
    is_weighing: bool = False  # importance counts what experts contribute


@dataclass(slots=True)
class Gate:
    """A `Router` (sharing.py) that applies a setting to the steps it is given.

    steps: int64 [steps, M], the rows that meet in a step; -1 is a slot without a row. Rows that
    are in no step keep their routing. Only full steps are counted.
    """

    setting: Setting
    similarity: list[Tensor] | None = None
    steps: Tensor = field(default_factory=lambda: torch.empty(0, 1, dtype=torch.long))
    active: list[Tensor] = field(default_factory=list)  # T of each full step, by layer call
    retained: list[Tensor] = field(default_factory=list)  # retained mass of their rows
    contribution: list[Tensor] | None = None  # where the setting weighs by it

    def __call__(
        self, index: int, scores: Tensor, ids: Tensor, weights: Tensor, layer: Experts
    ) -> tuple[Tensor, Tensor]:
        num_experts = scores.shape[1]
        setting = self.setting
        budget = num_experts if setting.budget is None else setting.budget
        if isinstance(budget, tuple):
            budget = budget[index]
        knobs: dict[str, Any] = {
            "budget": torch.tensor(budget, dtype=torch.int32),
            "floor": torch.tensor(setting.floor, dtype=torch.int32),
            "demand": None if setting.demand is None else torch.tensor(setting.demand),
            "policy": setting.policy,
            "correction_bias": layer.bias,
        }
        if self.similarity is not None:
            knobs["similarity"] = self.similarity[index]
        if setting.is_weighing:
            assert self.contribution is not None
            knobs["contribution"] = self.contribution[index]
        new_ids, new_weights = ids.clone(), weights.clone()
        active, retained = [], []
        for rows in self.steps:
            is_full = bool((rows >= 0).all())
            rows = rows if is_full else rows[rows >= 0]
            if not len(rows):
                continue
            kinds = torch.full((len(rows),), int(RowClass.FLEXIBLE), dtype=torch.uint8)
            got = select(scores[rows], ids[rows], weights[rows], kinds, **knobs)
            new_ids[rows], new_weights[rows] = got.topk_ids, got.topk_weights
            if is_full:
                active.append(got.num_active)
                retained.append(got.retained_mass)
        if active:
            self.active.append(torch.stack(active))
            self.retained.append(torch.stack(retained))
        return new_ids, new_weights

    def mean_active(self) -> float:
        """Mean T over layers and full steps."""
        return float(torch.cat([each.flatten() for each in self.active]).float().mean())
