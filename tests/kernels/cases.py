"""Batches for selection: random ones of every kind of router, and plain ones of given sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_kernels import RowClass

ROUTERS = ("softmax", "renormalised", "sigmoid_bias", "grouped", "shared", "scaled", "ties")
Controls = tuple[float, int, float | None]  # budget as a share of E, floor, demand


@dataclass(frozen=True)
class Case:
    """Arguments of `select` but for the policy."""

    scores: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    row_class: Tensor
    budget: Tensor
    floor: Tensor
    demand: Tensor | None
    correction_bias: Tensor | None = None
    similarity: Tensor | None = None
    contribution: Tensor | None = None

    @property
    def num_experts(self) -> int:
        return self.scores.shape[1]

    def arguments(self, device: str = "cpu") -> dict[str, Any]:
        """Those that are given, on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        needed = ("demand", "correction_bias")
        return {
            name: None if value is None else value.to(device)
            for name, value in values.items()
            if value is not None or name in needed
        }

    def with_controls(self, budget: float, floor: int | None, demand: float | None) -> Case:
        """With a budget as a share of E; a floor of None stays."""
        return replace(
            self,
            budget=int32(int(budget * self.num_experts)),
            floor=self.floor if floor is None else int32(floor),
            demand=None if demand is None else torch.tensor(demand),
        )

    def with_rows(self, rows: Tensor) -> Case:
        names = ("scores", "topk_ids", "topk_weights", "row_class")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def int32(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


def random_case(seed: int, router: str | None = None) -> Case:
    """A small batch whose sizes, rows and controls all follow from the seed."""
    rng = np.random.default_rng(seed)
    router = router or ROUTERS[rng.integers(len(ROUTERS))]
    num_rows = int(rng.integers(0, 11))
    num_experts = int(rng.choice([1, 2, 5, 8, 13, 16, 24]))
    top_k = int(rng.integers(1, min(num_experts, 6) + 1))
    logits = rng.normal(size=(num_rows, num_experts)) * rng.choice([0.5, 2.0, 6.0])

    bias = None
    scores = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    scores /= scores.sum(axis=1, keepdims=True)
    if router == "sigmoid_bias":
        scores = 1 / (1 + np.exp(-logits))
        bias = rng.normal(size=num_experts).astype(np.float32)
    if router == "ties":
        scores = rng.integers(0, 4, size=logits.shape) / 8
    scores = scores.astype(np.float32)

    ranking = scores if bias is None else scores + bias
    if router == "grouped" and num_experts % 4 == 0:
        ranking = _best_groups(ranking, num_groups=4, num_kept=max(2, -(-top_k * 4 // num_experts)))
    ids = np.argsort(-ranking, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    weights = np.take_along_axis(scores, ids, axis=1)
    if router in ("renormalised", "sigmoid_bias", "scaled"):
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-20)
    if router == "scaled":
        weights *= 2.5
    if router == "shared":
        shared = np.full((num_rows, 1), num_experts, np.int32)
        ids = np.concatenate([ids, shared], axis=1)
        weights = np.concatenate([weights, np.ones((num_rows, 1), np.float32)], axis=1)
    shuffle = rng.permuted(np.tile(np.arange(ids.shape[1]), (num_rows, 1)), axis=1)
    ids, weights = (np.take_along_axis(a, shuffle, axis=1) for a in (ids, weights))
    ids[rng.random(ids.shape) < rng.choice([0.0, 0.0, 0.1])] = -1

    # Halves and quarters meet equal weights exactly at the threshold.
    demand = rng.choice([0.0, 0.25, 0.5, rng.random(), rng.random()])

    return Case(
        scores=torch.from_numpy(scores),
        topk_ids=torch.from_numpy(ids).to(torch.int64 if rng.random() < 0.3 else torch.int32),
        topk_weights=torch.from_numpy(weights),
        row_class=torch.from_numpy(
            rng.choice([0, 1, 2, 2, 2], size=num_rows).astype(np.uint8)
            if rng.random() < 0.7
            else np.full(num_rows, RowClass.FLEXIBLE, np.uint8)
        ),
        budget=int32(int(rng.integers(-1, num_experts + 2))),
        floor=int32(int(rng.choice([0, 1, 1, 2, 9]))),
        demand=None if rng.random() < 0.2 else torch.tensor(demand, dtype=torch.float32),
        correction_bias=None if bias is None else torch.from_numpy(bias),
        # Quarters, so that likeness is tied.
        similarity=torch.from_numpy(
            (rng.integers(-2, 5, size=(num_experts, num_experts)) / 4).astype(np.float32)
        ),
    )


def _best_groups(ranking: np.ndarray, num_groups: int, num_kept: int) -> np.ndarray:
    """Ranking with every group of experts but each row's best ones ruled out."""
    groups = ranking.reshape(-1, num_groups, ranking.shape[1] // num_groups)
    worst = np.argsort(-groups.max(axis=2), axis=1, kind="stable")[:, min(num_kept, num_groups) :]
    masked = groups.copy()
    np.put_along_axis(masked, worst[:, :, None], -np.inf, axis=1)
    return masked.reshape(ranking.shape)


def softmax_case(num_rows: int, num_experts: int, top_k: int, controls: Controls) -> Case:
    """Softmax routing with popular experts; one row in eight is a pad, one in eight exact."""
    random = torch.Generator().manual_seed(num_rows * num_experts + top_k)
    logits = 2 * torch.randn(num_rows, num_experts, generator=random)
    scores = (logits + torch.randn(num_experts, generator=random)).softmax(dim=1)
    weights, ids = scores.topk(top_k, dim=1)
    row_class = torch.randint(0, 16, (num_rows,), generator=random).add(1).div(2).clamp(max=2)
    if num_rows == 1:
        row_class = torch.tensor([2.0])
    case = Case(
        scores=scores,
        topk_ids=ids.int(),
        topk_weights=weights,
        row_class=row_class.to(torch.uint8),
        budget=torch.tensor(0),
        floor=torch.tensor(0),
        demand=None,
    )
    return case.with_controls(*controls)
