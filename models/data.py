"""Training batches: problems as right-padded tokens, N of them valid."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.model import Batch
from models.problem import Problem
from models.recipe import Recipe
from models.tasks import stream
from models.vocabulary import TURN_END, chat_prompt


@dataclass(frozen=True, slots=True)
class Examples:
    """A right-padded batch: inputs [N], targets [N], loss weights [N]."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    batch: Batch


def examples(
    tokenizer: Tokenizer, problems: Sequence[Problem], prompt_weight: float = 0.0
) -> Examples:
    """Chat prompts and solutions; a solution's tokens weigh 1."""
    heads = tokenizer.encode_batch([chat_prompt(p.prompt) for p in problems])
    tails = tokenizer.encode_batch([p.solution + TURN_END for p in problems])
    lengths = [len(h.ids) + len(t.ids) - 1 for h, t in zip(heads, tails, strict=True)]
    inputs: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    positions: list[int] = []
    valid = torch.zeros(len(problems), max(lengths), dtype=torch.bool)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        ids = head.ids + tail.ids
        inputs += ids[:-1]
        targets += ids[1:]
        weights += [prompt_weight] * (len(head.ids) - 1) + [1.0] * len(tail.ids)
        positions += range(lengths[row])
        valid[row, : lengths[row]] = True
    return Examples(
        torch.tensor(inputs),
        torch.tensor(targets),
        torch.tensor(weights),
        Batch(valid, torch.tensor(positions)),
    )


def batches(
    tokenizer: Tokenizer, recipe: Recipe, worker: int, texts: Sequence[Problem], start: int = 0
) -> Iterator[list[Examples]]:
    """An endless stream of a worker's shares of the steps from `start`: tasks, then texts."""
    seed = recipe.seed * recipe.workers + worker
    arithmetic, code = (stream(task, "train", seed) for task in ("math", "code"))
    shuffled = _shuffled(texts, seed)
    count = recipe.batch // recipe.workers
    math_count = round(count * recipe.math_share)
    for step in itertools.count():
        tasks = [*itertools.islice(arithmetic, math_count)]
        tasks += itertools.islice(code, count - math_count)
        read = [*itertools.islice(shuffled, recipe.text_batch // recipe.workers)]
        if step < start:
            continue
        parts = [examples(tokenizer, tasks, recipe.prompt_weight)]
        if read:
            parts.append(examples(tokenizer, read, prompt_weight=1.0))
        yield parts


def _shuffled(texts: Sequence[Problem], seed: int) -> Iterator[Problem]:
    """All texts in a random order, then in another, without end."""
    rng = random.Random(seed)
    order = list(texts)
    while order:
        rng.shuffle(order)
        yield from order
