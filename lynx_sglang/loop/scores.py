"""Router scores of a layer, as the model's own top-k sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import softplus

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1, dtype=torch.float32),
    "sigmoid": lambda logits: torch.sigmoid(logits.float()),
    "sqrtsoftplus": lambda logits: softplus(logits.float()).sqrt(),
}


@dataclass(frozen=True, slots=True)
class RouterScores:
    """Router scores that are not worked out before they are needed."""

    logits: torch.Tensor  # [M, E], any float dtype
    scoring: str  # a key of SCORES

    def __call__(self) -> torch.Tensor:
        """Scores [M, E], float32."""
        return SCORES[self.scoring](self.logits)


def scores_of(router_logits: torch.Tensor, topk_config: Any) -> RouterScores:
    """Router scores, as the model's own top-k sees them before any bias.

    A grouped router with a bias uses a sigmoid, whatever its ``scoring_func``. A custom routing
    function hides its scores; softmax keeps the order of the logits, as refills need.
    """
    is_biased_group = topk_config.use_grouped_topk and topk_config.correction_bias is not None
    is_custom = topk_config.custom_routing_function is not None
    name = "sigmoid" if is_biased_group else topk_config.scoring_func
    return RouterScores(router_logits, "softmax" if is_custom else name)
