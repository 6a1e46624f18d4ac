"""Problems, their prompts and the full model's answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.frontier.free import decode
from models.model import Model
from models.tasks import Problem, problems
from models.vocabulary import chat_prompt


@dataclass(frozen=True, slots=True)
class Transcript:
    """One problem with the full model's greedy answer, its end token included."""

    problem: Problem
    prompt: list[int]
    answer: list[int]


def mixed(split: str, count: int, seed: int) -> list[Problem]:
    """`count` problems, maths and code in turn."""
    pools = [problems(task, split, (count + 1) // 2, seed) for task in ("math", "code")]
    return [problem for pair in zip(*pools, strict=True) for problem in pair][:count]


def encode(tokenizer: Tokenizer, asked: Sequence[Problem]) -> list[list[int]]:
    return [each.ids for each in tokenizer.encode_batch([chat_prompt(p.prompt) for p in asked])]


def transcribe(
    model: Model, tokenizer: Tokenizer, folder: Path, split: str, count: int, seed: int, cache: Path
) -> list[Transcript]:
    """The full model's transcripts; kept in `cache` under what they depend on."""
    asked = mixed(split, count, seed)
    prompts = encode(tokenizer, asked)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes())
    digest.update(json.dumps([split, count, seed, prompts]).encode())
    file = cache / f"{folder.name}-{digest.hexdigest()[:16]}.json"
    if not file.exists():
        answers = decode(model, tokenizer, prompts).answers
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(answers), encoding="utf-8")
        partial.replace(file)
    answers = json.loads(file.read_text(encoding="utf-8"))
    return [Transcript(*each) for each in zip(asked, prompts, answers, strict=True)]
