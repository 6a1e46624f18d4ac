"""Free-running greedy decoding with continuous batching, many batches side by side.

A batch is M slots; a slot whose answer ended takes the next prompt of its batch, so rows are at
unlike positions. All batches advance in one forward pass, but each selects for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.frontier.gate import Gate
from benchmarks.frontier.sharing import routed
from models.model import Batch, Cache, Model
from models.vocabulary import TURN_END

PREFILL = 64  # prompts of one prefill pass
MAX_NEW_TOKENS = 224


@dataclass(frozen=True, slots=True)
class Decoded:
    """Answers as token ids, their end token included where it came."""

    answers: list[list[int]]


class SlotCache(Cache):
    """Keys and values of all slots at fixed addresses, [slots, kv_heads, S, head_dim]."""

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        super().__init__(keys, values)
        self.lengths = lengths  # tokens that each slot holds, [slots]; shared by all layers

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        slots, longest = torch.arange(len(self.lengths)), int(self.lengths.max()) + 1
        self.keys[slots, :, self.lengths] = keys[:, :, 0]
        self.values[slots, :, self.lengths] = values[:, :, 0]
        return self.keys[:, :, :longest], self.values[:, :, :longest]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt's keys and values per layer, [2, kv_heads, P, head_dim], and its first token."""

    layers: list[Tensor]
    token: int


@torch.inference_mode()
def prefill(model: Model, prompts: Sequence[list[int]]) -> list[Prefilled]:
    """Every prompt at full quality."""
    done: list[Prefilled] = []
    for start in range(0, len(prompts), PREFILL):
        part = prompts[start : start + PREFILL]
        lengths = torch.tensor([len(prompt) for prompt in part])
        places = torch.arange(int(lengths.max()))
        valid = places < lengths[:, None]
        batch = Batch(valid, places.expand_as(valid)[valid])
        caches = model.caches()
        hidden, _ = model.hidden(
            torch.tensor([t for prompt in part for t in prompt]), batch, caches
        )
        ends = lengths.cumsum(0) - 1
        first = (hidden[ends] @ model.embedding.weight.t()).argmax(-1).tolist()
        for row, prompt in enumerate(part):
            layers = []
            for cache in caches:
                assert cache.keys is not None
                assert cache.values is not None
                both = (cache.keys[row, :, : len(prompt)], cache.values[row, :, : len(prompt)])
                layers.append(torch.stack(both))
            done.append(Prefilled(layers, first[row]))
    return done


@torch.inference_mode()
def decode(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    *,
    gate: Gate | None = None,
    rows: int = 16,
    max_slots: int = 256,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Decoded:
    """Greedy answers; `gate` selects for each batch of `rows` slots (None: full quality)."""
    end = tokenizer.token_to_id(TURN_END)
    shape = model.shape
    count = max(1, min(max_slots, len(prompts)) // rows) * rows
    answers: list[list[int]] = [[] for _ in prompts]
    lengths = torch.zeros(count, dtype=torch.long)
    size = max(map(len, prompts)) + max_new_tokens
    room = (count, shape.kv_heads, size, shape.head_dim)
    caches = [SlotCache(torch.zeros(room), torch.zeros(room), lengths) for _ in model.layers]
    queue = iter(range(len(prompts)))
    serving: list[int | None] = [None] * count  # the prompt that each slot answers
    latest = torch.zeros(count, dtype=torch.long)
    ready: dict[int, Prefilled] = {}

    def take(slot: int) -> None:
        """Give the slot the next prompt that needs decoding."""
        serving[slot] = None
        for index in queue:
            if index not in ready:
                block = range(index, min(index + PREFILL, len(prompts)))
                ready.update(zip(block, prefill(model, [prompts[i] for i in block]), strict=True))
            filled = ready.pop(index)
            answers[index].append(filled.token)
            if filled.token == end:
                continue
            length = len(prompts[index])
            for cache, both in zip(caches, filled.layers, strict=True):
                assert cache.keys is not None
                assert cache.values is not None
                cache.keys[slot, :, :length], cache.values[slot, :, :length] = both
            serving[slot], latest[slot], lengths[slot] = index, filled.token, length
            return

    for slot in range(count):
        take(slot)
    while any(index is not None for index in serving):
        live = torch.tensor([index is not None for index in serving])
        longest = int(lengths.max()) + 1
        visible = torch.arange(longest) <= lengths[:, None]
        batch = Batch(live[:, None], lengths[live], visible[:, None, None, :])
        if gate is None:
            logits, _ = model(latest[live], batch, caches)
        else:
            steps = torch.full((count,), -1, dtype=torch.long)
            steps[live] = torch.arange(int(live.sum()))
            gate.steps = steps.view(-1, rows)
            with routed(model, gate):
                logits, _ = model(latest[live], batch, caches)
        latest[live] = logits.argmax(-1)
        lengths[live] += 1
        for slot in live.nonzero().flatten().tolist():
            index = serving[slot]
            assert index is not None
            answers[index].append(int(latest[slot]))
            if latest[slot] == end or len(answers[index]) >= max_new_tokens:
                take(slot)
    return Decoded(answers)
