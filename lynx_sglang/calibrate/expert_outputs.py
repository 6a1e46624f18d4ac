"""Typical size of each expert's output: the ``contribution`` of ``select``.

An expert adds its router weight times its output to a token, and outputs differ in size.
``calibrate`` measures them once, on its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class ExpertOutputs:
    """Sums over tokens, by layer and expert: squared weights, and these times squared norms."""

    def __init__(self) -> None:
        self._squares: dict[int, Tensor] = {}
        self._weights: dict[int, Tensor] = {}

    def note(
        self, layer_id: int, num_experts: int, ids: Tensor, weights: Tensor, outputs: Tensor
    ) -> None:
        """Count tokens that use one expert each.

        Args:
            ids: [N]; those outside of the routed experts, [0, num_experts), are left out.
            weights: float [N], the router's.
            outputs: float [N, H], of the experts, before any weight.
        """
        is_routed = (ids >= 0) & (ids < num_experts)
        ids, w2 = ids[is_routed].long().cpu(), weights[is_routed].double().square().cpu()
        if layer_id not in self._weights:
            self._squares[layer_id] = torch.zeros(num_experts, dtype=torch.float64)
            self._weights[layer_id] = torch.zeros(num_experts, dtype=torch.float64)
        norms2 = outputs[is_routed].float().square().sum(1)
        self._squares[layer_id].index_add_(0, ids, w2 * norms2.double().cpu())
        self._weights[layer_id].index_add_(0, ids, w2)

    @property
    def layer_ids(self) -> list[int]:
        """Layers with counts, ascending."""
        return sorted(self._weights)

    def contributions(self, layer_id: int) -> Tensor:
        """Contributions of one layer with counts: float32 [E] in [0, 1]."""
        return contributions_of(self._squares[layer_id], self._weights[layer_id])


def contributions_of(squares: Tensor, weights: Tensor) -> Tensor:
    """A layer's contributions, float32 [E] in [0, 1].

    The root mean square of the norm of an expert's output, over the tokens that use the expert and
    with their squared router weights, over the layer's greatest. An expert that none used counts
    as the median one.

    Args:
        squares: [E], sums over an expert's tokens of squared weight times squared norm.
        weights: [E], sums of the squared weights.
    """
    norms = (squares / weights).sqrt()
    norms = norms.nan_to_num(float(norms.nanmedian()))
    return (norms / norms.max()).nan_to_num(1.0).float()


def by_slot(
    run: Callable[..., Any], layer: Any, dispatch_output: Any
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Run the experts of each top-k slot alone, with whatever runner the layer has.

    Args:
        run: SGLang's ``FusedMoE.run_moe_core``, called once for each routed slot.

    Yields:
        ids [M], router weights [M] and the experts' outputs [M, H], before any weight.
    """
    given = dispatch_output.topk_output
    num_shared = layer.moe_runner_config.num_fused_shared_experts or 0
    for slot in range(given.topk_ids.shape[1] - num_shared):
        alone = torch.zeros_like(given.topk_weights)
        alone[:, slot] = 1.0
        call = dispatch_output._replace(
            # A runner may write its result over its input.
            hidden_states=dispatch_output.hidden_states.clone(),
            topk_output=given._replace(topk_weights=alone),
        )
        output = run(layer, call).hidden_states
        yield given.topk_ids[:, slot], given.topk_weights[:, slot], output
