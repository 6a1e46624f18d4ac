"""A model's perplexity on GSM8K's text, beside unigram and bigram models of the same tokens.

Teacher-forced, in the chat format; the template's own tokens are not counted. `question` is the
problem's text, `answer` the worked solution and the end of the turn.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from models.data import examples
from models.model import Model
from models.problem import Problem
from models.vocabulary import MIDDLE, PREFIX, TURN_END

BATCH = 16
MIXES = tuple(step / 20 for step in range(1, 20))  # shares of the unigram in the bigram model


@torch.inference_mode()
def perplexity(model: Model, tokenizer: Tokenizer, texts: Sequence[Problem]) -> dict[str, float]:
    """Perplexity per token of both parts, and bits per byte of the whole."""
    prefix, middle = (len(tokenizer.encode(text).ids) for text in (PREFIX, MIDDLE))
    nats, tokens = {"question": 0.0, "answer": 0.0}, {"question": 0, "answer": 0}
    ordered = sorted(texts, key=lambda text: len(text.prompt) + len(text.solution))
    for start in range(0, len(ordered), BATCH):
        group = examples(tokenizer, ordered[start : start + BATCH])
        logits, _ = model(group.inputs, group.batch)
        losses = F.cross_entropy(logits, group.targets, reduction="none")
        is_prompt = group.weights == 0
        position = group.batch.positions
        head = torch.where(is_prompt, position + 1, 0)  # tokens of the prompt up to this target
        ends = torch.zeros(len(group.batch.valid), dtype=torch.long)
        row = group.batch.rows // group.batch.valid.shape[1]
        ends = ends.scatter_reduce(0, row, head, "amax") - middle
        parts = {
            "question": is_prompt & (position + 1 >= prefix) & (position < ends[row]),
            "answer": ~is_prompt,
        }
        for name, mask in parts.items():
            nats[name] += losses[mask].sum().item()
            tokens[name] += int(mask.sum())
    size = sum(len((text.prompt + text.solution).encode()) for text in texts)
    return {
        "tokens": sum(tokens.values()),
        **{name: math.exp(nats[name] / tokens[name]) for name in nats},
        "whole": math.exp(sum(nats.values()) / sum(tokens.values())),
        "bits_per_byte": sum(nats.values()) / math.log(2) / size,
    }


def baselines(
    tokenizer: Tokenizer,
    train: Sequence[Problem],
    validation: Sequence[Problem],
    test: Sequence[Problem],
) -> dict[str, float]:
    """Perplexity per token of `test` under counts of `train`, mixed as is best on `validation`."""
    size = tokenizer.get_vocab_size()
    counts, pairs, firsts = Counter[int](), Counter[tuple[int, int]](), Counter[int]()
    for ids in _ids(tokenizer, train):
        counts.update(ids[1:])
        pairs.update(itertools.pairwise(ids))
        firsts.update(ids[:-1])
    total = sum(counts.values())

    def measured(texts: Sequence[Problem], mix: float) -> float:
        nats, tokens = 0.0, 0
        for ids in _ids(tokenizer, texts):
            for first, second in itertools.pairwise(ids):
                unigram = (counts[second] + 1) / (total + size)
                seen = firsts[first]
                bigram = pairs[first, second] / seen if seen else unigram
                nats -= math.log(mix * unigram + (1 - mix) * bigram)
                tokens += 1
        return math.exp(nats / tokens)

    mix = min(MIXES, key=lambda mix: measured(validation, mix))
    return {"unigram": measured(test, 1.0), "bigram": measured(test, mix), "bigram_mix": mix}


def _ids(tokenizer: Tokenizer, texts: Sequence[Problem]) -> list[list[int]]:
    """Question and answer, each begun by the template's last token, as the model sees them."""
    start = tokenizer.encode(PREFIX).ids[-1:]
    parts = [part for text in texts for part in (text.prompt, text.solution + TURN_END)]
    return [start + encoded.ids for encoded in tokenizer.encode_batch(parts)]
