"""A model whose lost slots are sketched, in the frontier's instrument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.frontier.gate import Gate
from lynx_kernels.sketch import LayerSketches, add_sketches, lost_slots
from models.experts import Experts
from models.model import Model


@dataclass(slots=True)
class Sketched(Gate):
    """A gate that says which slots it took from a row.

    lost: ids [N, K], -1 where a slot is not lost, and the weights [N, K] that the router gave, of
    the last layer; factors: each layer's; read: numbers of factors that each full step reads.
    """

    factors: Sequence[LayerSketches] = ()
    lost: tuple[Tensor, Tensor] | None = None
    read: list[Tensor] = field(default_factory=list)

    def __call__(
        self, index: int, scores: Tensor, ids: Tensor, weights: Tensor, layer: Experts
    ) -> tuple[Tensor, Tensor]:
        new_ids, new_weights = Gate.__call__(self, index, scores, ids, weights, layer)
        lost = lost_slots(ids, new_ids)
        self.lost = lost, weights
        full = self.steps[(self.steps >= 0).all(dim=1)]
        if len(full):
            self.read.append(values_read(lost[full], self.factors[index]))
        return new_ids, new_weights

    def values_per_layer(self) -> float:
        """Mean over layers and full steps of the numbers that are read of factors."""
        return float(torch.cat(self.read).double().mean())


def values_read(ids: Tensor, factors: LayerSketches) -> Tensor:
    """Numbers that each step reads of factors: int64 [S] of lost ids [S, M, K]."""
    steps = ids.flatten(1)
    is_lost = torch.zeros(len(steps), factors.num_experts + 1, dtype=torch.bool)
    is_lost.scatter_(1, steps + 1, True)  # column 0: slots that are not lost
    return (is_lost[:, 1:] * factors.sizes).sum(dim=1)


@contextmanager
def sketching(model: Model, gate: Sketched) -> Iterator[None]:
    """Inside, what `gate` takes from a layer's rows is sketched into the layer's output."""
    layers = model.moe_layers()

    def computing(
        layer: Experts, factors: LayerSketches
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def compute(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            out = Experts.compute(layer, x, ids, weights)
            if gate.lost is None:
                return out
            (lost, own), gate.lost = gate.lost, None
            scale = 1.0 if layer.grouping is None else layer.grouping.scale
            return add_sketches(out, x, lost, own * scale, factors)

        return compute

    for layer, factors in zip(layers, gate.factors, strict=True):
        vars(layer)["compute"] = computing(layer, factors)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["compute"]
