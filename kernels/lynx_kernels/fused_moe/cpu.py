"""Fused MoE on CPU: one grouped product of the active experts each way.

The rows of each expert, their order and each element's operations are those of SGLang's
`moe_forward_native`, so the result is the same bit for bit. The form saves the work around the
products: the loop over idle experts, an activation per expert, concatenation and weight views.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lynx_kernels import scratch
from lynx_kernels.fused_moe.activation import ACTIVATIONS
from lynx_kernels.fused_moe.cpu_grouped_mm import Ints, grouped_mm

ALIGNMENT = 64  # bytes, of every allocation


class CpuExperts:
    """The experts of one layer, ready to run: the weights may change in place.

    w13 [E, 2I, H] (gate rows first), w2 [E, H, I], w13_bias [E, 2I], w2_bias [E, H].
    """

    def __init__(
        self,
        w13: Tensor,
        w2: Tensor,
        *,
        w13_bias: Tensor | None = None,
        w2_bias: Tensor | None = None,
        activation: str = "silu",
    ) -> None:
        self._num_experts = w13.shape[0]
        self._w13, self._w2 = w13.detach(), w2.detach()
        # Float32 products depend on the alignment of their rows; native's start at an allocation.
        row_bytes = [size * w2.element_size() for size in w2.shape[1:]]
        self._is_aligned = w2.element_size() < 4 or not any(b % ALIGNMENT for b in row_bytes)
        self._w13_bias, self._w2_bias = w13_bias, w2_bias
        self._activation = ACTIVATIONS[activation]

    def __call__(
        self,
        hidden: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        *,
        apply_router_weight_on_input: bool = False,
    ) -> Tensor:
        """hidden [M, H], topk_ids [M, K] (-1: no expert), topk_weights [M, K] -> [M, H]."""
        flat_ids = topk_ids.reshape(-1)
        order = flat_ids.argsort()  # native's own sort: ties decide the order of an expert's rows
        counts = np.bincount(flat_ids.numpy() + 1, minlength=self._num_experts + 1)
        if counts.size > self._num_experts + 1:
            raise ValueError(
                f"topk_ids: expected ids below {self._num_experts}, got {int(flat_ids.max())}"
            )
        num_empty = int(counts[0])
        if num_empty:
            order = order[num_empty:]
            topk_weights = topk_weights.masked_fill(topk_ids < 0, 0.0)
        active = counts[1:].nonzero()[0]
        rows = hidden.index_select(0, order // topk_ids.shape[1])
        if apply_router_weight_on_input:
            rows = (rows * topk_weights.reshape(-1)[order, None]).to(hidden.dtype)
            topk_weights = torch.ones_like(topk_weights)
        outputs = self._run(rows, active, counts[1:][active])

        num_slots = flat_ids.shape[0]
        if num_empty:
            slots = outputs.new_zeros(num_slots, outputs.shape[1])
        else:
            slots = scratch.empty(num_slots, outputs.shape[1], like=outputs)
        slots.index_copy_(0, order, outputs)
        weighted = slots.view(*topk_ids.shape, hidden.shape[1]).type(topk_weights.dtype)
        return weighted.mul_(topk_weights.unsqueeze(-1)).sum(dim=1).type(hidden.dtype)

    def _run(self, rows: Tensor, active: Ints, counts: Ints) -> Tensor:
        """Expert outputs of rows that are grouped by active expert: [rows, H]."""
        if self._is_aligned or len(active) < 2:
            return self._run_together(rows, active, counts)
        groups = enumerate(rows.split_with_sizes(counts.tolist()))
        return torch.cat(
            [self._run_together(x, active[i : i + 1], counts[i : i + 1]) for i, x in groups]
        )

    def _run_together(self, rows: Tensor, active: Ints, counts: Ints) -> Tensor:
        gate_up = grouped_mm(rows, self._w13, active, counts)
        if self._w13_bias is not None:
            gate_up = _add_bias(gate_up, self._w13_bias, active, counts)
        outputs = grouped_mm(self._activation(gate_up), self._w2, active, counts)
        if self._w2_bias is not None:
            outputs = _add_bias(outputs, self._w2_bias, active, counts)
        return outputs


def _add_bias(rows: Tensor, bias: Tensor, active: Ints, counts: Ints) -> Tensor:
    per_row = bias[torch.from_numpy(active).repeat_interleave(torch.from_numpy(counts))]
    return (rows.float() + per_row).to(rows.dtype)
