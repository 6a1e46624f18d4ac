"""Trains one of the models from nothing: tokenizer, weights, Hugging Face folder.

    python -m models.train --shape lynx-moe-sigmoid --out build/lynx-moe-sigmoid --gsm8k FOLDER

The data are drawn on the fly from the tasks' training split, and from GSM8K's training text where
its folder is given. The learning rate decays over `--steps`; with `--minutes` it decays over
whichever of steps and minutes ends first, and the number of steps is logged, so that the run can
be repeated with `--steps`. Each worker is a process with one thread and its own share of the
batch: unlike a thread pool, which waits for its slowest thread hundreds of times a step, workers
meet once a step. The folder is written as the run goes on, with `training.pt`, from which
`--resume` goes on after an interruption.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, multiprocessing
from torch import distributed as dist
from torch.nn import functional as F

from models import checkpoint, gsm8k
from models.data import Examples, batches
from models.decoding import complete
from models.model import Model
from models.perplexity import perplexity
from models.problem import Problem
from models.recipe import Recipe, learning_rate_scale
from models.routing import balanced_bias
from models.shape import SHAPES, Shape
from models.tasks import TASKS, is_correct, problems
from models.vocabulary import train_tokenizer

STATE = "training.pt"


def losses(
    model: Model, examples: Examples, recipe: Recipe
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The training loss, each MoE layer's load [L, E], and the loss's parts."""
    logits, routings = model(examples.inputs, examples.batch)
    per_token = F.cross_entropy(logits, examples.targets, reduction="none")
    answer = (per_token * examples.weights).sum() / examples.weights.sum()
    balance = torch.stack([routing.balance_loss for routing in routings]).mean()
    z = torch.stack([routing.z_loss for routing in routings]).mean()
    total = answer
    if model.shape.grouping is None:
        total = total + recipe.balance_weight * balance + recipe.z_weight * z
    experts = model.shape.experts
    loads = torch.stack([r.ids.flatten().bincount(minlength=experts) for r in routings])
    completion = per_token.detach()[examples.weights == 1.0].mean()
    parts = {"loss": completion.item(), "balance": balance.item(), "z": z.item()}
    return total, loads.float(), parts


def optimiser_of(model: Model, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in model.layers.parameters() if p.dim() > 1]
    others = [p for p in model.layers.parameters() if p.dim() == 1]
    others += [*model.embedding.parameters(), *model.norm.parameters()]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def validate(
    model: Model, tokenizer: Tokenizer, count: int, texts: Sequence[Problem]
) -> dict[str, float]:
    """Accuracy per task, and text perplexity, of the weights as they would be stored."""
    rounded = checkpoint.from_hub(checkpoint.to_hub(model), model.shape)
    measured = {}
    for task in TASKS:
        asked = problems(task, "validation", count, seed=0)
        answers = complete(rounded, tokenizer, [problem.prompt for problem in asked])
        right = sum(is_correct(p, a) for p, a in zip(asked, answers, strict=True))
        measured[task] = right / count
    return measured | (perplexity(rounded, tokenizer, texts) if texts else {})


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


def _begin(
    recipe: Recipe, shape: Shape, start_folder: Path | None, texts: Sequence[Problem]
) -> tuple[Model, Tokenizer]:
    """The trained folder to go on from, or a fresh model with a freshly trained tokenizer."""
    if start_folder is not None:
        model, tokenizer = checkpoint.load(start_folder)
        return model.train(), tokenizer
    sample = [p for task in TASKS for p in problems(task, "train", 4000, recipe.seed)]
    words = (w for p in [*sample, *texts] for w in (p.prompt, p.solution, "user\n", "assistant\n"))
    return Model(shape), train_tokenizer(words, shape.vocabulary)


def _resume(
    model: Model, optimiser: torch.optim.Optimizer, recipe: Recipe, path: Path
) -> tuple[int, float]:
    """Load an interrupted run; returns its next step and the minutes that it has taken.

    Only its length, `steps` and `minutes`, may have changed.
    """
    state = torch.load(path, weights_only=True)
    begun = Recipe(**state["recipe"])
    if replace(begun, steps=recipe.steps, minutes=recipe.minutes) != recipe:
        raise ValueError(f"--resume: {path} was begun with other settings: {begun}")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["minutes"]


class Worker:
    """One process's model, optimiser and share of the data."""

    def __init__(
        self, rank: int, recipe: Recipe, shape: Shape, start: Path | None, texts: list[Problem]
    ) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(1)
        self.rank, self.recipe, self.texts = rank, recipe, texts
        self.model, self.tokenizer = _begin(recipe, shape, start, texts)
        self.optimiser = optimiser_of(self.model, recipe)
        self.gradients = torch.empty(sum(p.numel() for p in self.model.parameters()))

    def step(self, parts: list[Examples], scale: float) -> dict[str, float]:
        """Learn from one step's examples at `scale` of the full learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * scale
        loads = torch.zeros(len(self.model.moe_layers()), self.model.shape.experts)
        shown: dict[str, float] = {}
        weights = (1.0, self.recipe.text_weight)
        for name, weight, part in zip(("", "text_"), weights, parts, strict=False):
            total, load, found = losses(self.model, part, self.recipe)
            (weight * total).backward()
            loads = loads + load
            shown |= {name + key: value for key, value in found.items()}
        _mean_gradients(self.model, self.gradients)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        dist.all_reduce(loads)
        for experts, load in zip(self.model.moe_layers(), loads, strict=True):
            if experts.bias is not None:
                experts.bias = balanced_bias(experts.bias, load, self.recipe.bias_rate * scale)
        busiest = (loads.amax(1) / loads.mean(1)).max()
        return shown | {"norm": norm.item(), "busiest": busiest.item()}

    def save(self, folder: Path, step: int, minutes: float) -> None:
        """Write the folder, and what `--resume` needs."""
        checkpoint.save(self.model, self.tokenizer, folder)
        state = {
            "recipe": asdict(self.recipe),
            "step": step,
            "minutes": minutes,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state, folder / f"{STATE}.new")
        (folder / f"{STATE}.new").replace(folder / STATE)


def train(rank: int, recipe: Recipe, arguments: argparse.Namespace, meeting: str) -> None:
    """Run one worker's part of the recipe; worker 0 leaves the model in `--out`."""
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=recipe.workers
    )
    folder: Path = arguments.out
    texts, unseen = (
        gsm8k.texts(arguments.gsm8k, split) if recipe.text_batch else []
        for split in ("train", "validation")
    )
    worker = Worker(rank, recipe, SHAPES[arguments.shape], arguments.start, texts)
    first, before = 0, 0.0
    if arguments.resume:
        first, before = _resume(worker.model, worker.optimiser, recipe, folder / STATE)
    if rank == 0:
        print(f"parameters {worker.gradients.numel()} from step {first}: {recipe}", flush=True)
    began = time.monotonic()
    steps = batches(worker.tokenizer, recipe, rank, texts, first)
    for step, parts in enumerate(steps, first):
        minutes = before + (time.monotonic() - began) / 60
        progress = _progress(recipe, step, minutes)
        if progress >= 1:
            break
        scale = learning_rate_scale(recipe, step, progress)
        if rank == 0 and step > first and step % recipe.save_every == 0:
            worker.save(folder, step, minutes)
        shown = worker.step(parts, scale)
        if rank:
            continue
        if step % 20 == 0:
            values = " ".join(f"{name} {value:.4f}" for name, value in shown.items())
            print(
                f"step {step} minutes {minutes:.2f} progress {progress:.3f} lr {scale:.3f}",
                values,
                flush=True,
            )
        if step and step % recipe.validate_every == 0:
            found = validate(worker.model, worker.tokenizer, recipe.validation_problems, unseen)
            print(f"step {step} validation {found}", flush=True)
    dist.destroy_process_group()
    if rank == 0:
        worker.save(folder, step, minutes)
        found = validate(worker.model, worker.tokenizer, 4 * recipe.validation_problems, unseen)
        print(f"finished: steps {step} minutes {minutes:.1f} validation {found}", flush=True)


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--shape", choices=SHAPES, default="lynx-moe-tiny", help="sizes to train")
    parser.add_argument("--gsm8k", type=Path, default=None, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--start", type=Path, default=None, help="trained folder to go on from")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--minutes", type=float, default=None, help="decay and stop by then")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--workers", type=int, default=defaults.workers)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--text-batch", type=int, default=None, help="GSM8K texts a step; 8")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    arguments = parser.parse_args()
    if arguments.gsm8k is None:
        if arguments.text_batch:
            parser.error("--text-batch needs --gsm8k")
        arguments.text_batch = 0
    elif arguments.text_batch is None:
        arguments.text_batch = 8
    if arguments.text_batch:
        gsm8k.texts(arguments.gsm8k, "train")  # a missing file stops here, not in each worker
    if arguments.resume and not (arguments.out / STATE).exists():
        parser.error(f"--resume: {arguments.out} has no {STATE}")
    recipe = Recipe(
        steps=arguments.steps,
        minutes=arguments.minutes,
        seed=arguments.seed,
        workers=arguments.workers,
        batch=arguments.batch,
        text_batch=arguments.text_batch,
        learning_rate=arguments.learning_rate,
    )
    with tempfile.TemporaryDirectory() as meeting_folder:
        meeting = f"{meeting_folder}/meeting"
        multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            train,
            args=(recipe, arguments, meeting),
            nprocs=recipe.workers,
        )


if __name__ == "__main__":
    main()
