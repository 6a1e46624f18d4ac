"""Does a split of experts over layers by learned prices beat one demand? On the bundled model.

    python -m benchmarks.controller.allocation

Maths and code problems in batches of 16 decode rows, teacher-forced on the full model's greedy
answers. Each split keeps its own KV cache; KL(full || capped) is per token. Prices come from caps
on one layer at a time, on other problems: `KL_l(T_l)`, with a pooled slope below one sampled KL.
Compared at equal mean T: one demand, a demand per layer by price, and caps that are uniform,
proportional to the uncapped T, or by price.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.command import command
from lynx_kernels import select
from models.checkpoint import load
from models.experts import Experts
from models.model import Batch, Cache, Model
from models.routing import Routing
from models.tasks import problems
from models.vocabulary import TURN_END, chat_prompt

DEMANDS = (0.3, 0.4, 0.5, 0.6, 0.75)
ROWS, STEPS = 16, 96


@dataclass(frozen=True)
class Way:
    name: str
    demand: tuple[float, ...]  # [L]
    cap: tuple[int, ...]  # [L]


@dataclass
class Seen:
    kl: list[np.ndarray]  # per step [rows]
    active: np.ndarray  # [L] sum of T
    mass: np.ndarray  # [L] sum of mean retained mass
    steps: int = 0


class Cutting:
    """Patches the model's expert layers to route as a Way says; None: untouched."""

    def __init__(self, model: Model) -> None:
        self.way: Way | None = None
        self.seen: Seen | None = None
        self.uncapped = np.zeros(len(model.layers))
        for number, layer in enumerate(model.layers):
            experts = next(each for each in layer.modules() if isinstance(each, Experts))
            experts.forward = partial(self.run, experts, number)  # type: ignore[method-assign]

    def run(self, experts: Experts, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        scores, ids, weights = experts.choose(experts.router(x))
        if self.way is not None and self.seen is not None:
            chosen = select(
                scores,
                ids,
                weights,
                torch.full((len(x),), 2, dtype=torch.uint8),
                budget=torch.tensor(self.way.cap[layer], dtype=torch.int32),
                floor=torch.tensor(1, dtype=torch.int32),
                demand=torch.tensor(self.way.demand[layer]),
                correction_bias=experts.bias,
            )
            ids, weights = chosen.topk_ids.long(), chosen.topk_weights
            weights, ids = torch.where(ids >= 0, weights, 0.0), ids.clamp(min=0)
            self.seen.active[layer] += int(chosen.num_active)
            self.seen.mass[layer] += float(chosen.retained_mass.mean())
        else:
            self.uncapped[layer] += len(ids.unique())
        out = experts.compute(x, ids, weights)
        zero = torch.tensor(0.0)
        return out, Routing(scores, ids, zero, zero)


@torch.inference_mode()
def compare(
    model: Model, tokenizer: Tokenizer, cutting: Cutting, prompts: Sequence[str], ways: list[Way]
) -> dict[str, Seen]:
    """Decode greedily at full quality; run each way beside it on the same tokens."""
    end = tokenizer.token_to_id(TURN_END)
    encoded = [tokenizer.encode(chat_prompt(prompt)).ids for prompt in prompts]
    longest = max(map(len, encoded))
    valid = torch.zeros(len(encoded), longest, dtype=torch.bool)
    for row, ids in enumerate(encoded):
        valid[row, longest - len(ids) :] = True
    seen_keys, positions = valid, valid.long().cumsum(1) - 1
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = (causal & valid.unsqueeze(1)) | torch.eye(longest, dtype=torch.bool)
    caches = model.caches()
    tokens = torch.tensor([token for ids in encoded for token in ids])
    batch = Batch(valid, positions[valid], mask.unsqueeze(1))
    cutting.way = None
    hidden, _ = model.hidden(tokens, batch, caches)
    latest = (batch.spread(hidden)[:, -1] @ model.embedding.weight.t()).argmax(-1)
    own = {way.name: [Cache(each.keys, each.values) for each in caches] for way in ways}
    layers = len(model.layers)
    found = {way.name: Seen([], np.zeros(layers), np.zeros(layers)) for way in ways}
    running, lengths = torch.ones(len(encoded), dtype=torch.bool), positions[:, -1] + 1
    cutting.uncapped[:] = 0.0
    steps = 0
    for _ in range(STEPS):
        running = running & (latest != end)
        if int(running.sum()) < len(encoded) // 2:
            break
        steps += 1
        seen_keys = torch.cat([seen_keys, running.unsqueeze(1)], dim=1)
        visible = seen_keys.clone()
        visible[:, -1] = True
        batch = Batch(running.unsqueeze(1), lengths[running], visible[:, None, None, :])
        cutting.way = None
        full, _ = model(latest[running], batch, caches)
        log_full = full.log_softmax(-1)
        for way in ways:
            cutting.way, cutting.seen = way, found[way.name]
            cut, _ = model(latest[running], batch, own[way.name])
            kl = (log_full.exp() * (log_full - cut.log_softmax(-1))).sum(-1)
            found[way.name].kl.append(kl.numpy())
            found[way.name].steps += 1
        latest = latest.clone()
        latest[running] = full.argmax(-1)
        lengths = lengths + running.long()
    cutting.uncapped /= max(steps, 1)
    return found


def merge(parts: list[dict[str, Seen]]) -> dict[str, Seen]:
    merged: dict[str, Seen] = {}
    for part in parts:
        for name, each in part.items():
            known = merged.setdefault(
                name, Seen([], np.zeros_like(each.active), np.zeros_like(each.mass))
            )
            known.kl.append(np.concatenate(each.kl))
            known.active += each.active
            known.mass += each.mass
            known.steps += each.steps
    return merged


def batches(count: int, seed: int) -> list[list[str]]:
    """Alternately maths and code, ROWS prompts each."""
    found = []
    for i in range(count):
        task = ("math", "code")[i % 2]
        drawn = problems(task, "test", ROWS * count, seed)
        found.append([each.prompt for each in drawn[ROWS * i : ROWS * (i + 1)]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/lynx-moe-tiny"))
    parser.add_argument("--calibrate", type=int, default=2, help="batches")
    parser.add_argument("--judge", type=int, default=6, help="batches")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/allocation.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(options.model)
    model.eval()
    cutting = Cutting(model)
    layers, experts = model.shape.layers, model.shape.experts
    full = (experts,) * layers

    def one_layer(layer: int, demand: float) -> Way:
        demands = tuple(demand if each == layer else 1.0 for each in range(layers))
        return Way(f"{layer} {demand}", demands, full)

    alone = [one_layer(layer, demand) for layer in range(layers) for demand in DEMANDS]
    uncapped, parts = np.zeros(layers), []
    for prompts in batches(options.calibrate, 11):
        parts.append(compare(model, tokenizer, cutting, prompts, alone))
        uncapped += cutting.uncapped / options.calibrate
    calibrated = merge(parts)
    t = np.array(
        [
            [calibrated[f"{n} {d}"].active[n] / calibrated[f"{n} {d}"].steps for d in DEMANDS]
            for n in range(layers)
        ]
    )
    loss = np.array(
        [[np.concatenate(calibrated[f"{n} {d}"].kl).mean() for d in DEMANDS] for n in range(layers)]
    )
    grid = np.linspace(DEMANDS[0], 1.0, 71)
    knots = np.array([*DEMANDS, 1.0])
    t_of = np.array([np.interp(grid, knots, [*row, uncapped[n]]) for n, row in enumerate(t)])
    kl_of = np.array([np.interp(grid, knots, [*row, 0.0]) for row in loss])

    def priced(total: float) -> np.ndarray:
        """Grid index per layer: the same price per expert everywhere, sum of T at most `total`."""
        low, high = 0.0, 1.0
        for _ in range(60):
            price = (low + high) / 2.0
            at = (kl_of + price * t_of).argmin(axis=1)
            if t_of[np.arange(layers), at].sum() > total:
                low = price
            else:
                high = price
        return np.asarray((kl_of + high * t_of).argmin(axis=1))

    ways = []
    for demand in DEMANDS[:-1]:
        place = int(np.abs(grid - demand).argmin())
        total = t_of[:, place].sum()
        at = priced(total)
        price_t = t_of[np.arange(layers), at]
        ways += [
            Way(f"one demand {demand}", (demand,) * layers, full),
            Way(f"demand by price {demand}", tuple(float(grid[i]) for i in at), full),
            Way(f"uniform cap {demand}", (1.0,) * layers, (round(total / layers),) * layers),
            Way(
                f"proportional cap {demand}",
                (1.0,) * layers,
                tuple(round(float(each)) for each in uncapped * total / uncapped.sum()),
            ),
            Way(f"cap by price {demand}", (1.0,) * layers, tuple(int(x) for x in np.rint(price_t))),
        ]
    found = merge(
        [
            compare(model, tokenizer, cutting, prompts, ways)
            for prompts in batches(options.judge, 12)
        ]
    )
    rng = np.random.default_rng(0)
    table = {}
    print(f"uncapped T per layer {np.round(uncapped, 1).tolist()}")
    print(
        "| way | T | mass | KL mean (95 % interval over batches) | KL p99 |\n|---|---|---|---|---|"
    )
    for way in ways:
        each = found[way.name]
        means = np.array([part.mean() for part in each.kl])
        draws = rng.choice(means, (2000, len(means))).mean(axis=1)
        low, high = np.percentile(draws, [2.5, 97.5])
        kl = np.concatenate(each.kl)
        row = {
            "t": float(each.active.mean() / each.steps),
            "mass": float(each.mass.mean() / each.steps),
            "kl": float(kl.mean()),
            "kl_low": float(low),
            "kl_high": float(high),
            "kl_p99": float(np.percentile(kl, 99)),
            "tokens": len(kl),
            "demand": way.demand,
            "cap": way.cap,
        }
        table[way.name] = row
        print(
            f"| {way.name} | {row['t']:.2f} | {row['mass']:.3f} | {row['kl']:.5f} "
            f"({low:.5f}-{high:.5f}) | {row['kl_p99']:.4f} |"
        )
    record = {
        "command": command(),
        "uncapped": uncapped.tolist(),
        "kl_of_one_layer": loss.tolist(),
        "t_of_one_layer": t.tolist(),
        "ways": table,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
