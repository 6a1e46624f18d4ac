"""Routes every MoE layer of a model through a given function.

M rows (tokens) of a step, E experts, K slots of a row, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from models.experts import Experts
from models.model import Model

# Layer index, scores [N, E], ids [N, K], weights [N, K] and the layer to new ids and weights.
Router = Callable[[int, Tensor, Tensor, Tensor, Experts], tuple[Tensor, Tensor]]


@contextmanager
def routed(model: Model, router: Router) -> Iterator[None]:
    """Inside, what each layer chose goes through `router` before it is computed."""
    layers = model.moe_layers()

    def choosing(index: int, layer: Experts) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
        def choose(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            scores, ids, weights = Experts.choose(layer, logits)
            return scores, *without_gaps(*router(index, scores, ids, weights, layer))

        return choose

    for index, layer in enumerate(layers):
        vars(layer)["choose"] = choosing(index, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["choose"]


def without_gaps(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Empty slots (id -1) as another expert of the row at weight 0: the model knows no empty.

    A row without any expert gets expert 0 at weight 0.
    """
    is_empty, other = ids < 0, ids.amax(dim=1, keepdim=True).clamp(min=0)
    return ids.where(~is_empty, other), weights.masked_fill(is_empty, 0.0)
