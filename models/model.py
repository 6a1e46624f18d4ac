"""A Mixture-of-Experts transformer in plain torch, fast enough to train on two CPU cores.

B sequences, S positions, N valid tokens, H hidden. Everything but attention runs on the N valid
tokens only. With a softmax router it is Qwen3-MoE, with a sigmoid router GLM-4.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.experts import Experts, SwiGlu
from models.routing import Routing
from models.shape import Shape


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
    """The layout of tokens: `valid` [B, S] marks real ones, `positions` [N] places them.

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
    """Attention, then experts or, in a model's first `dense_layers`, one SwiGLU."""

    def __init__(self, shape: Shape, index: int) -> None:
        super().__init__()
        is_dense = index < shape.dense_layers
        self.attention_norm = RMSNorm(shape.hidden, shape.epsilon)
        self.attention = Attention(shape)
        self.experts_norm = RMSNorm(shape.hidden, shape.epsilon)
        self.experts = None if is_dense else Experts(shape)
        self.dense = SwiGlu(shape.hidden, shape.dense_inner) if is_dense else None

    def forward(
        self, x: Tensor, batch: Batch, rope: tuple[Tensor, Tensor], cache: Cache
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.attention(self.attention_norm(x), batch, rope, cache)
        rows = self.experts_norm(x)
        if self.dense is not None:
            return x + self.dense(rows), None
        assert self.experts is not None
        out, routing = self.experts(rows)
        return x + out, routing


class Model(nn.Module):
    """Token ids [N] in, logits [N, vocabulary] and each MoE layer's routing out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape, index) for index in range(shape.layers))
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

    def moe_layers(self) -> list[Experts]:
        """The MoE layers, in the order of `forward`'s routings."""
        return [module for module in self.layers.modules() if isinstance(module, Experts)]

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
            if routing is not None:
                routings.append(routing)
        return self.norm(x), routings

    def forward(
        self, ids: Tensor, batch: Batch, caches: list[Cache] | None = None
    ) -> tuple[Tensor, list[Routing]]:
        hidden, routings = self.hidden(ids, batch, caches)
        return hidden @ self.embedding.weight.t(), routings
