"""SwiGLU experts behind a router, fast enough to train on CPU cores.

N tokens, H hidden, E experts, K experts per token, I the experts' inner size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.routing import Choice, Routing, balance_loss, grouped_top_k, softmax_top_k
from models.shape import Shape


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), every token through the same weights."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(2 * inner, hidden))
        self.down = nn.Parameter(torch.empty(hidden, inner))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down)


class _Experts(torch.autograd.Function):
    """SwiGLU experts over tokens sorted by expert: mm on contiguous slices, no padding."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        tokens, top_k = ids.shape
        order = ids.flatten().argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel())
        counts = torch.bincount(ids.flatten(), minlength=gate_up.shape[0]).tolist()
        xs = x.index_select(0, order // top_k)  # [NK, H]
        ws = weights.flatten().index_select(0, order).unsqueeze(1)  # [NK, 1]
        gu = xs.new_empty(xs.shape[0], gate_up.shape[1])  # [NK, 2I]
        start = 0
        for expert, count in enumerate(counts):
            if count:
                rows = slice(start, start + count)
                torch.mm(xs[rows], gate_up[expert].t(), out=gu[rows])
                start += count
        gate, up = gu.chunk(2, dim=1)
        scaled = F.silu(gate).mul_(up).mul_(ws)  # [NK, I]
        ys = torch.empty_like(xs)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                rows = slice(start, start + count)
                torch.mm(scaled[rows], down[expert].t(), out=ys[rows])
                start += count
        ctx.save_for_backward(xs, ws, gu, scaled, order, place, gate_up, down)
        ctx.counts, ctx.top_k = counts, top_k
        return ys.index_select(0, place).view(tokens, top_k, -1).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        xs, ws, gu, scaled, order, place, gate_up, down = ctx.saved_tensors
        top_k = ctx.top_k
        dys = grads[0].index_select(0, order // top_k)  # [NK, H]
        dscaled = torch.empty_like(scaled)
        ddown, dgate_up = torch.zeros_like(down), torch.zeros_like(gate_up)
        start = 0
        for expert, count in enumerate(ctx.counts):
            if count:
                rows = slice(start, start + count)
                torch.mm(dys[rows], down[expert], out=dscaled[rows])
                torch.mm(dys[rows].t(), scaled[rows], out=ddown[expert])
                start += count
        gate, up = gu.chunk(2, dim=1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        dws = (dscaled * silu).mul_(up).sum(1)
        dact = dscaled.mul_(ws)
        dgu = torch.empty_like(gu)
        dgate, dup = dgu.chunk(2, dim=1)
        torch.mul(dact, silu, out=dup)
        # silu'(g) = s + g s (1 - s) = s + silu (1 - s)
        torch.mul(dact.mul_(up), sigmoid + silu * (1 - sigmoid), out=dgate)
        dxs = dys
        start = 0
        for expert, count in enumerate(ctx.counts):
            if count:
                rows = slice(start, start + count)
                torch.mm(dgu[rows], gate_up[expert], out=dxs[rows])
                torch.mm(dgu[rows].t(), xs[rows], out=dgate_up[expert])
                start += count
        dx = dxs.index_select(0, place).view(-1, top_k, xs.shape[1]).sum(1)
        return dx, dws.index_select(0, place).view(-1, top_k), None, dgate_up, ddown


class Experts(nn.Module):
    """One MoE layer: `choose` what each token uses, `compute` it."""

    bias: Tensor | None  # [E], the correction bias of a sigmoid router

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.top_k = shape.top_k
        self.grouping = shape.grouping
        self.router = nn.Linear(shape.hidden, shape.experts, bias=False)
        bias = None if shape.grouping is None else torch.zeros(shape.experts)
        self.register_buffer("bias", bias)
        self.gate_up = nn.Parameter(torch.empty(shape.experts, 2 * shape.inner, shape.hidden))
        self.down = nn.Parameter(torch.empty(shape.experts, shape.hidden, shape.inner))
        self.shared = (
            SwiGlu(shape.hidden, shape.shared_experts * shape.inner)
            if shape.shared_experts
            else None
        )

    def choose(self, logits: Tensor) -> Choice:
        """Scores [N, E], ids [N, K] and weights [N, K] of router logits [N, E]."""
        if self.grouping is None or self.bias is None:
            return softmax_top_k(logits, self.top_k)
        return grouped_top_k(logits, self.bias, self.top_k, self.grouping)

    def compute(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The layer's output [N, H] with these experts, shared ones and scale included."""
        out: Tensor = _Experts.apply(x, weights, ids, self.gate_up, self.down)
        if self.grouping is not None:
            out = out * self.grouping.scale
        return out if self.shared is None else out + self.shared(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        logits = self.router(x)
        scores, ids, weights = self.choose(logits)
        z_loss = logits.logsumexp(-1).square().mean()
        routing = Routing(scores, ids, balance_loss(scores, ids), z_loss)
        return self.compute(x, ids, weights), routing
