"""Batched greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer

from models.model import Batch, Model
from models.routing import Routing
from models.vocabulary import TURN_END, chat_prompt

Watcher = Callable[[list[Routing]], None]


@torch.inference_mode()
def complete(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = 224,
    watch: Watcher | None = None,
) -> list[str]:
    """Greedy completions of chat prompts, one batch; `watch` sees each decode step's routing.

    Prompts are padded on the left; a finished sequence leaves the MoE layers at once.
    """
    end = tokenizer.token_to_id(TURN_END)
    encoded = [tokenizer.encode(chat_prompt(prompt)).ids for prompt in prompts]
    longest = max(map(len, encoded))
    valid = torch.zeros(len(encoded), longest, dtype=torch.bool)
    for row, ids in enumerate(encoded):
        valid[row, longest - len(ids) :] = True
    seen = valid  # [B, S_keys]
    positions = valid.long().cumsum(1) - 1
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    # A pad attends to itself: its row is thrown away, and softmax over nothing is NaN.
    mask = (causal & seen.unsqueeze(1)) | torch.eye(longest, dtype=torch.bool)
    caches = model.caches()
    tokens = torch.tensor([token for ids in encoded for token in ids])
    batch = Batch(valid, positions[valid], mask.unsqueeze(1))
    hidden, _ = model.hidden(tokens, batch, caches)
    logits = batch.spread(hidden)[:, -1] @ model.embedding.weight.t()
    latest, running = logits.argmax(-1), torch.ones(len(encoded), dtype=torch.bool)
    lengths = positions[:, -1] + 1
    chosen: list[list[int]] = [[] for _ in encoded]
    for _ in range(max_new_tokens):
        running = running & (latest != end)
        if not running.any():
            break
        for row in running.nonzero().flatten().tolist():
            chosen[row].append(int(latest[row]))
        seen = torch.cat([seen, running.unsqueeze(1)], dim=1)
        visible = seen.clone()
        visible[:, -1] = True
        batch = Batch(running.unsqueeze(1), lengths[running], visible[:, None, None, :])
        out, routings = model(latest[running], batch, caches)
        if watch is not None:
            watch(routings)
        latest = latest.clone()
        latest[running] = out.argmax(-1)
        lengths = lengths + running.long()
    return [tokenizer.decode(ids) for ids in chosen]
