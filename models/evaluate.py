"""Measures a trained folder: accuracy per task, how evenly its experts are used, and text.

    python -m models.evaluate --model models/lynx-moe-sigmoid --count 500 --gsm8k FOLDER

Decoding is greedy, in float32, on the test split. Routing is measured on decode steps only, on
requests of both tasks in equal parts. With GSM8K's folder, perplexity on its test text, beside
count models of its training text.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from models import gsm8k
from models.checkpoint import load
from models.decoding import complete
from models.model import Model
from models.perplexity import baselines, perplexity
from models.routing import Routing
from models.tasks import TASKS, Problem, is_correct, problems
from models.vocabulary import chat_prompt

BATCHES = (1, 4, 16, 32)
DECODE_BATCH = 64
TEST_SEED = 2024


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson's score interval)."""
    z, share = 1.96, right / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - spread) / scale, min(1.0, (centre + spread) / scale)


class Steps:
    """Collects the expert ids of every decode step, layer by layer."""

    def __init__(self) -> None:
        self.ids: list[list[torch.Tensor]] = []  # steps x layers, each [rows, K]

    def __call__(self, routings: list[Routing]) -> None:
        self.ids.append([routing.ids for routing in routings])

    def loads(self, layer: int, experts: int) -> torch.Tensor:
        """Number of tokens that each expert of a layer served, [E]."""
        flat = torch.cat([step[layer].flatten() for step in self.ids])
        return torch.bincount(flat, minlength=experts).float()

    def distinct(self, layer: int, rows: int) -> list[int]:
        """Distinct experts of a layer in `rows` tokens of a step, over all steps that have them."""
        return [
            len(set(step[layer][:rows].flatten().tolist()))
            for step in self.ids
            if step[layer].shape[0] >= rows
        ]


def accuracy(
    model: Model, tokenizer: Tokenizer, task: str, count: int, seed: int
) -> dict[str, Any]:
    """Accuracy with its interval, and the mean lengths in tokens."""
    asked = problems(task, "test", count, seed)
    right, tokens = 0, 0
    wrong: list[dict[str, str]] = []
    for start in range(0, count, DECODE_BATCH):
        group = asked[start : start + DECODE_BATCH]
        answers = complete(model, tokenizer, [problem.prompt for problem in group])
        for problem, answer in zip(group, answers, strict=True):
            tokens += len(tokenizer.encode(answer).ids) + 1
            if is_correct(problem, answer):
                right += 1
            else:
                wrong.append({"prompt": problem.prompt, "completion": answer})
    low, high = wilson(right, count)
    prompt_tokens = sum(len(tokenizer.encode(chat_prompt(p.prompt)).ids) for p in asked)
    return {
        "n": count,
        "right": right,
        "accuracy": right / count,
        "interval_95": [low, high],
        "mean_prompt_tokens": prompt_tokens / count,
        "mean_completion_tokens": tokens / count,
        "first_wrong": wrong[:3],
    }


def routing(model: Model, tokenizer: Tokenizer, seed: int) -> list[dict[str, Any]]:
    """Per layer: load balance, and the natural number of distinct experts T by batch size."""
    watched = Steps()
    pools: list[list[Problem]] = [problems(task, "test", 64, seed) for task in TASKS]
    mixed = [problem for group in zip(*pools, strict=True) for problem in group]
    for start in range(0, len(mixed), 32):
        group = mixed[start : start + 32]
        complete(model, tokenizer, [problem.prompt for problem in group], watch=watched)
    rows = []
    for layer in range(len(model.moe_layers())):
        load_of = watched.loads(layer, model.shape.experts)
        distinct = {}
        for batch in BATCHES:
            seen = watched.distinct(layer, batch)
            distinct[str(batch)] = sum(seen) / len(seen)
        rows.append(
            {
                "layer": layer,
                "max_over_mean": float(load_of.max() / load_of.mean()),
                "coefficient_of_variation": float(load_of.std(correction=0) / load_of.mean()),
                "unused": int((load_of == 0).sum()),
                "distinct_experts": distinct,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder to measure")
    parser.add_argument("--count", type=int, default=500, help="problems per task")
    parser.add_argument("--seed", type=int, default=TEST_SEED)
    parser.add_argument("--gsm8k", type=Path, default=None, help="folder with gsm8k_test.jsonl")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count must be 1 or more, got {arguments.count}")
    read = {}
    if arguments.gsm8k is not None:
        read = {split: gsm8k.texts(arguments.gsm8k, split) for split in gsm8k.SPLITS}
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load(arguments.model)
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "accuracy": {
            task: accuracy(model, tokenizer, task, arguments.count, arguments.seed)
            for task in TASKS
        },
        "routing": routing(model, tokenizer, arguments.seed),
    }
    if read:
        report["perplexity"] = {
            "model": perplexity(model, tokenizer, read["test"]),
            **baselines(tokenizer, read["train"], read["validation"], read["test"]),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
