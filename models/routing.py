"""From router logits to experts and weights. N tokens, E experts, K experts per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.shape import Grouping

Choice = tuple[Tensor, Tensor, Tensor]  # scores [N, E], ids int64 [N, K], weights [N, K]


@dataclass(slots=True)
class Routing:
    """One layer's routing: scores [N, E], chosen ids [N, K], both losses.

    Scores are a softmax or, before any correction bias, a sigmoid of the logits.
    """

    probabilities: Tensor
    ids: Tensor
    balance_loss: Tensor
    z_loss: Tensor


def softmax_top_k(logits: Tensor, top_k: int) -> Choice:
    """The `top_k` likeliest experts; weights are their probabilities over the sum of these."""
    scores = logits.softmax(dim=-1)
    weights, ids = scores.topk(top_k, dim=-1)
    return scores, ids, weights / weights.sum(-1, keepdim=True)


def grouped_top_k(logits: Tensor, bias: Tensor, top_k: int, grouping: Grouping) -> Choice:
    """DeepSeek-V3's router: sigmoid scores, chosen with `bias` [E] and weighed without it.

    A group counts as much as its two best biased scores together; experts of the other groups
    are not chosen. Weights are scores over their sum, not yet times `grouping.scale`.
    """
    scores = logits.sigmoid()
    biased = (scores.detach() + bias).view(len(scores), grouping.groups, -1)
    kept = biased.topk(2, dim=-1).values.sum(-1).topk(grouping.kept_groups, dim=-1).indices
    is_closed = torch.ones_like(biased[..., 0], dtype=torch.bool).scatter_(1, kept, False)
    open_only = biased.masked_fill(is_closed.unsqueeze(-1), float("-inf")).flatten(1)
    ids = open_only.topk(top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    return scores, ids, weights / weights.sum(-1, keepdim=True)


def balance_loss(scores: Tensor, ids: Tensor) -> Tensor:
    """Switch Transformer's: E times the sum of load share times mean score share; 1 at best."""
    experts = scores.shape[1]
    load = torch.bincount(ids.flatten(), minlength=experts) / ids.numel()
    return experts * (load * (scores / scores.sum(-1, keepdim=True)).mean(0)).sum()


def balanced_bias(bias: Tensor, loads: Tensor, rate: float) -> Tensor:
    """One step of loss-free balancing (arXiv 2408.15664): up for the idle, down for the busy.

    `loads` [E] are the tokens that each expert served in the last step.
    """
    return bias + rate * torch.sign(loads.mean() - loads)
