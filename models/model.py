"""Qwen3-MoE in plain torch, fast enough to train on two CPU cores.

B sequences, S positions, N valid tokens, H hidden, E experts, K experts per token, I the experts'
inner size. Everything but attention runs on the N valid tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model; the defaults are those of lynx-moe-tiny."""

    vocabulary: int = 640
    layers: int = 8
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 64
    top_k: int = 4
    inner: int = 48
    positions: int = 1024
    rope_theta: float = 10000.0
    epsilon: float = 1e-6


@dataclass(slots=True)
class Routing:
    """What one layer's router did: probabilities [N, E], chosen ids [N, K], both losses."""

    probabilities: Tensor
    ids: Tensor
    balance_loss: Tensor
    z_loss: Tensor


@dataclass(slots=True)
class Cache:
    """Keys and values of one layer, [B, kv_heads, S, head_dim], grown as tokens are decoded."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


@dataclass(slots=True)
class Batch:
    """How tokens lie: `valid` [B, S] marks real ones, `positions` [N] places them.

    `mask` [B, 1, S, S_keys] is what each may attend to; None means causal (right padding only).
    """

    valid: Tensor
    positions: Tensor
    mask: Tensor | None = None
    rows: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.valid.flatten().nonzero().squeeze(1)

    def spread(self, tokens: Tensor) -> Tensor:
        """[N, ...] to [B, S, ...], zeros at pads."""
        size, length = self.valid.shape
        padded = tokens.new_zeros(size * length, *tokens.shape[1:])
        return padded.index_copy(0, self.rows, tokens).view(size, length, *tokens.shape[1:])

    def gather(self, padded: Tensor) -> Tensor:
        """[B, S, ...] to [N, ...]."""
        return padded.flatten(0, 1).index_select(0, self.rows)


class RMSNorm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


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
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.top_k = shape.top_k
        self.router = nn.Linear(shape.hidden, shape.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(shape.experts, 2 * shape.inner, shape.hidden))
        self.down = nn.Parameter(torch.empty(shape.experts, shape.hidden, shape.inner))

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        logits = self.router(x)
        probabilities = logits.softmax(dim=-1)
        weights, ids = probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = _Experts.apply(x, weights, ids, self.gate_up, self.down)
        experts = probabilities.shape[1]
        load = torch.bincount(ids.flatten(), minlength=experts) / ids.numel()
        balance_loss = experts * (load * probabilities.mean(0)).sum()
        z_loss = logits.logsumexp(-1).square().mean()
        return out, Routing(probabilities, ids, balance_loss, z_loss)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q = nn.Linear(shape.hidden, queries, bias=False)
        self.k = nn.Linear(shape.hidden, kv, bias=False)
        self.v = nn.Linear(shape.hidden, kv, bias=False)
        self.o = nn.Linear(queries, shape.hidden, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.epsilon)
        self.k_norm = RMSNorm(shape.head_dim, shape.epsilon)

    def forward(self, x: Tensor, batch: Batch, rope: tuple[Tensor, Tensor], cache: Cache) -> Tensor:
        head_dim = self.shape.head_dim
        q = _rotate(self.q_norm(self.q(x).view(-1, self.shape.heads, head_dim)), rope)
        k = _rotate(self.k_norm(self.k(x).view(-1, self.shape.kv_heads, head_dim)), rope)
        v = self.v(x).view(-1, self.shape.kv_heads, head_dim)
        query, key, value = (batch.spread(part).transpose(1, 2) for part in (q, k, v))
        key, value = cache.extend(key, value)
        out = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(self.shape.heads // self.shape.kv_heads, dim=1),
            value.repeat_interleave(self.shape.heads // self.shape.kv_heads, dim=1),
            attn_mask=batch.mask,
            is_causal=batch.mask is None,
        )
        projected: Tensor = self.o(batch.gather(out.transpose(1, 2).flatten(2)))
        return projected


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.hidden, shape.epsilon)
        self.attention = Attention(shape)
        self.experts_norm = RMSNorm(shape.hidden, shape.epsilon)
        self.experts = Experts(shape)

    def forward(
        self, x: Tensor, batch: Batch, rope: tuple[Tensor, Tensor], cache: Cache
    ) -> tuple[Tensor, Routing]:
        x = x + self.attention(self.attention_norm(x), batch, rope, cache)
        out, routing = self.experts(self.experts_norm(x))
        return x + out, routing


class Model(nn.Module):
    """Token ids [N] in, logits [N, vocabulary] and each layer's routing out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.epsilon)
        half = shape.head_dim // 2
        frequency = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(shape.positions, dtype=torch.float32), frequency)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Draw fresh weights from torch's global generator."""
        residual = 0.02 / (2 * self.shape.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.ones_(parameter)
            elif name.endswith((".o.weight", ".down")):
                nn.init.normal_(parameter, std=residual * 2)
            elif name.endswith("embedding.weight"):
                nn.init.normal_(parameter, std=0.05)
            else:
                nn.init.normal_(parameter, std=0.05)

    def caches(self) -> list[Cache]:
        return [Cache() for _ in self.layers]

    def hidden(
        self, ids: Tensor, batch: Batch, caches: list[Cache] | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """Final hidden states [N, H] before the output projection."""
        x = self.embedding(ids)
        cosine, sine = self.get_buffer("cosine"), self.get_buffer("sine")
        rope = (cosine[batch.positions].unsqueeze(1), sine[batch.positions].unsqueeze(1))
        routings = []
        for layer, cache in zip(self.layers, caches or self.caches(), strict=True):
            x, routing = layer(x, batch, rope, cache)
            routings.append(routing)
        return self.norm(x), routings

    def forward(
        self, ids: Tensor, batch: Batch, caches: list[Cache] | None = None
    ) -> tuple[Tensor, list[Routing]]:
        hidden, routings = self.hidden(ids, batch, caches)
        return hidden @ self.embedding.weight.t(), routings
