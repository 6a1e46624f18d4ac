"""Selection on CPU tensors: the compiled rows of `select_cpu_kernels` on views of them.

A step selects in every layer, so an array library's calls would cost more than the experts that
selection saves; compiled loops cost a tenth of that.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lynx_kernels.policies import Demand, Importance, Policy, Weights
from lynx_kernels.select_cpu_kernels import select_rows
from lynx_kernels.selection import Selection

DEMANDS, IMPORTANCES, WEIGHTS = list(Demand), list(Importance), list(Weights)
NO_BIAS = np.empty(0, np.float32)
NO_SIMILARITY = np.empty((0, 0), np.float32)


def select_cpu(
    scores: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_class: Tensor,
    *,
    budget: Tensor,
    floor: Tensor,
    demand: Tensor | None,
    policy: Policy,
    correction_bias: Tensor | None,
    similarity: Tensor | None = None,
) -> Selection:
    share = 1.0 if demand is None else float(demand)
    share = max(share, 0.0) if share < 1.0 else 1.0  # NaN: 1
    ids, weights = topk_ids.numpy(), topk_weights.numpy()
    out_ids, out_weights = np.empty_like(ids), np.empty_like(weights)
    retained = np.empty(ids.shape[0], np.float32)
    active = np.empty(scores.shape[1], np.bool_)
    num_active, is_changed = select_rows(
        scores.numpy(),
        ids,
        weights,
        row_class.numpy(),
        NO_BIAS if correction_bias is None else correction_bias.numpy(),
        max(int(budget), 0),
        min(max(int(floor), 0), ids.shape[1]),
        share,
        DEMANDS.index(policy.demand),
        IMPORTANCES.index(policy.importance),
        policy.is_refilling,
        WEIGHTS.index(policy.weights),
        policy.confidence,
        np.array(policy.bin_edges, np.float64),
        policy.max_vote_base,
        NO_SIMILARITY if similarity is None else similarity.numpy(),
        policy.min_similarity,
        out_ids,
        out_weights,
        retained,
        active,
    )
    return Selection(
        topk_ids=torch.from_numpy(out_ids) if is_changed else topk_ids,
        topk_weights=torch.from_numpy(out_weights) if is_changed else topk_weights,
        active=torch.from_numpy(active),
        num_active=torch.tensor(num_active, dtype=torch.int32, device="cpu"),
        retained_mass=torch.from_numpy(retained),
    )
