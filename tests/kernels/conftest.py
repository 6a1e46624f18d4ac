"""Random batches for selection, as every kind of router would send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lynx_kernels import RowClass

ROUTERS = ("softmax", "renormalised", "sigmoid_bias", "grouped", "shared", "scaled", "ties")


@dataclass(frozen=True)
class Case:
    scores: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    row_class: Tensor
    budget: Tensor
    floor: Tensor
    demand: Tensor | None
    correction_bias: Tensor | None = None
    similarity: Tensor | None = None

    @property
    def num_experts(self) -> int:
        return self.scores.shape[1]

    def arguments(self) -> dict[str, Any]:
        return dict(vars(self))

    def with_controls(self, *, budget: int, demand: float, floor: int | None = None) -> Case:
        floor_ = self.floor if floor is None else int32(floor)
        return replace(self, budget=int32(budget), demand=torch.tensor(demand), floor=floor_)

    def with_rows(self, rows: Tensor) -> Case:
        picked = {
            name: getattr(self, name)[rows]
            for name in ("scores", "topk_ids", "topk_weights", "row_class")
        }
        return replace(self, **picked)


def int32(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


def make_case(seed: int, router: str | None = None) -> Case:
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


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def case_of() -> Callable[..., Case]:
    return make_case
