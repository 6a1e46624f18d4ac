"""Trains lynx-moe-tiny from nothing: tokenizer, weights, Hugging Face folder.

    python models/train.py --out models/lynx-moe-tiny

The data are drawn on the fly from the tasks' training split. The learning rate decays over
`--steps`; with `--minutes` it decays over whichever of steps and minutes ends first, and the
number of steps is logged, so that the run can be repeated with `--steps`. Each worker is a
process with one thread and its own share of the batch: unlike a thread pool, which waits for its
slowest thread hundreds of times a step, workers meet once a step.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import checkpoint
import torch
from decoding import complete
from model import Batch, Model
from shape import Shape
from tasks import TASKS, is_correct, problems, stream
from tokenizers import Tokenizer
from torch import Tensor, multiprocessing
from torch import distributed as dist
from torch.nn import functional as F
from vocabulary import TURN_END, chat_prompt, train_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every setting of a run."""

    steps: int = 2400
    minutes: float | None = None
    seed: int = 7
    workers: int = 2
    batch: int = 64
    math_share: float = 0.625
    learning_rate: float = 3e-3
    warmup_steps: int = 60
    stable_share: float = 0.45
    weight_decay: float = 0.05
    clip: float = 1.0
    prompt_weight: float = 0.1
    balance_weight: float = 0.01
    z_weight: float = 1e-4
    validate_every: int = 250
    save_every: int = 100
    validation_problems: int = 48

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("workers", 1), ("batch", 2), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be {low} or more, got {getattr(self, name)!r}")
        if self.batch % self.workers:
            raise ValueError(f"batch must be a multiple of workers, got {self.batch!r}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes!r}")


@dataclass(frozen=True, slots=True)
class Examples:
    """A right-padded batch: inputs [N], targets [N], loss weights [N]."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    batch: Batch


def learning_rate_scale(recipe: Recipe, step: int, progress: float) -> float:
    """Warm up, hold, then fall to zero along a half cosine."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    decayed = max(0.0, progress - recipe.stable_share) / (1 - recipe.stable_share)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, decayed)))


def batches(tokenizer: Tokenizer, recipe: Recipe, worker: int) -> Iterator[Examples]:
    """An endless stream of a worker's shares of the batches, of both tasks."""
    seed = recipe.seed * recipe.workers + worker
    arithmetic, code = (stream(task, "train", seed) for task in ("math", "code"))
    count = recipe.batch // recipe.workers
    math_count = round(count * recipe.math_share)
    while True:
        drawn = [*itertools.islice(arithmetic, math_count)]
        drawn += itertools.islice(code, count - math_count)
        heads = tokenizer.encode_batch([chat_prompt(p.prompt) for p in drawn])
        tails = tokenizer.encode_batch([p.solution + TURN_END for p in drawn])
        lengths = [len(h.ids) + len(t.ids) - 1 for h, t in zip(heads, tails, strict=True)]
        inputs: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        positions: list[int] = []
        valid = torch.zeros(len(drawn), max(lengths), dtype=torch.bool)
        for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            ids = head.ids + tail.ids
            inputs += ids[:-1]
            targets += ids[1:]
            weights += [recipe.prompt_weight] * (len(head.ids) - 1) + [1.0] * len(tail.ids)
            positions += range(lengths[row])
            valid[row, : lengths[row]] = True
        yield Examples(
            torch.tensor(inputs),
            torch.tensor(targets),
            torch.tensor(weights),
            Batch(valid, torch.tensor(positions)),
        )


def losses(model: Model, examples: Examples, recipe: Recipe) -> tuple[Tensor, dict[str, float]]:
    """The training loss and its parts."""
    logits, routings = model(examples.inputs, examples.batch)
    per_token = F.cross_entropy(logits, examples.targets, reduction="none")
    answer = (per_token * examples.weights).sum() / examples.weights.sum()
    balance = torch.stack([routing.balance_loss for routing in routings]).mean()
    z = torch.stack([routing.z_loss for routing in routings]).mean()
    total = answer + recipe.balance_weight * balance + recipe.z_weight * z
    completion = per_token.detach()[examples.weights == 1.0].mean()
    return total, {"loss": completion.item(), "balance": balance.item(), "z": z.item()}


def optimiser_of(model: Model, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in model.layers.parameters() if p.dim() > 1]
    others = [p for p in model.layers.parameters() if p.dim() == 1]
    others += [*model.embedding.parameters(), *model.norm.parameters()]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def validate(model: Model, tokenizer: Tokenizer, count: int) -> dict[str, float]:
    """Accuracy per task of the weights as they would be stored, on the validation split."""
    rounded = checkpoint.from_hub(checkpoint.to_hub(model), model.shape)
    accuracy = {}
    for task in TASKS:
        asked = problems(task, "validation", count, seed=0)
        answers = complete(rounded, tokenizer, [problem.prompt for problem in asked])
        right = sum(is_correct(p, a) for p, a in zip(asked, answers, strict=True))
        accuracy[task] = right / count
    return accuracy


def _mean_gradients(model: Model, buffer: Tensor) -> None:
    """Replace every gradient with its mean over the workers; `buffer` holds all of them."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    torch.cat([gradient.flatten() for gradient in gradients], out=buffer)
    dist.all_reduce(buffer)
    buffer /= dist.get_world_size()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, torch.split(buffer, sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _progress(recipe: Recipe, step: int, minutes: float) -> float:
    """The share of the run that is over, by the first worker's clock."""
    share = max(step / recipe.steps, minutes / recipe.minutes if recipe.minutes else 0.0)
    agreed = torch.tensor([share], dtype=torch.float64)
    dist.broadcast(agreed, src=0)
    return agreed.item()


def _begin(recipe: Recipe, start_folder: Path | None) -> tuple[Model, Tokenizer]:
    """The trained folder to go on from, or a fresh model with a freshly trained tokenizer."""
    if start_folder is not None:
        model, tokenizer = checkpoint.load(start_folder)
        return model.train(), tokenizer
    shape = Shape()
    sample = [p for task in TASKS for p in problems(task, "train", 4000, recipe.seed)]
    texts = (text for p in sample for text in (p.prompt, p.solution, "user\n", "assistant\n"))
    return Model(shape), train_tokenizer(texts, shape.vocabulary)


def train(
    worker: int, recipe: Recipe, start_folder: Path | None, folder: Path, meeting: str
) -> None:
    """Run one worker's part of the recipe; worker 0 leaves the model in `folder`."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=worker, world_size=recipe.workers
    )
    model, tokenizer = _begin(recipe, start_folder)
    optimiser = optimiser_of(model, recipe)
    parameters = sum(p.numel() for p in model.parameters())
    buffer = torch.empty(parameters)
    if worker == 0:
        print(f"parameters {parameters} {recipe}", flush=True)
    start = time.monotonic()
    for step, examples in enumerate(batches(tokenizer, recipe, worker)):
        minutes = (time.monotonic() - start) / 60
        progress = _progress(recipe, step, minutes)
        if progress >= 1:
            break
        scale = learning_rate_scale(recipe, step, progress)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * scale
        total, parts = losses(model, examples, recipe)
        total.backward()  # type: ignore[no-untyped-call]
        _mean_gradients(model, buffer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if worker:
            continue
        if step % 20 == 0:
            shown = " ".join(f"{name} {value:.4f}" for name, value in parts.items())
            print(
                f"step {step} minutes {minutes:.2f} progress {progress:.3f} lr {scale:.3f} "
                f"norm {norm:.2f} {shown}",
                flush=True,
            )
        if step and step % recipe.save_every == 0:
            checkpoint.save(model, tokenizer, folder)
        if step and step % recipe.validate_every == 0:
            accuracy = validate(model, tokenizer, recipe.validation_problems)
            print(f"step {step} validation {accuracy}", flush=True)
    dist.destroy_process_group()
    if worker == 0:
        checkpoint.save(model, tokenizer, folder)
        minutes = (time.monotonic() - start) / 60
        accuracy = validate(model, tokenizer, 4 * recipe.validation_problems)
        print(f"finished: steps {step} minutes {minutes:.1f} validation {accuracy}", flush=True)


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--start", type=Path, default=None, help="trained folder to go on from")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--minutes", type=float, default=None, help="decay and stop by then")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--workers", type=int, default=defaults.workers)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    arguments = parser.parse_args()
    recipe = Recipe(
        steps=arguments.steps,
        minutes=arguments.minutes,
        seed=arguments.seed,
        workers=arguments.workers,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
    )
    with tempfile.TemporaryDirectory() as meeting_folder:
        meeting = f"{meeting_folder}/meeting"
        multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            train,
            args=(recipe, arguments.start, arguments.out, meeting),
            nprocs=recipe.workers,
        )


if __name__ == "__main__":
    main()
