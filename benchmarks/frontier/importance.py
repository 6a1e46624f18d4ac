"""What should an expert's importance count? Rules beyond those of `select`, on validation problems.

    python benchmarks/frontier/importance.py models/lynx-moe-sigmoid models/lynx-moe-tiny

M = 16, T = half of the natural one, one cap, floor 1; KL over that of p^4 with paired intervals.
"Put out" looks at what a row's experts put out, which no router knows before they run: a bound of
what a better importance could gain. Rows go to benchmarks/results/cpu/importance.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import run as frontier  # also finds the packages
import torch
from bootstrap import draws_of, interval, mean_kl
from checkpoint import load
from experts import Experts
from forced import Forced
from gate import Gate, Setting
from measure import figures
from rules import Layer, Rule, greedy, less_substitute, power, put_out, second_pass
from sensitivity import contributions, inputs_of
from torch import Tensor
from transcripts import transcribe

from lynx_kernels import POLICIES, RowClass, select

ROWS, SEED = 16, 132  # a seed of its own: the rules were found on the ablation's problems
ONE = torch.tensor(1, dtype=torch.int32)


class Ruled(Gate):
    """A gate whose `select` finds the experts important that a rule allows, and no others."""

    def __init__(self, forced: Forced, budget: int, rule: Rule, rows: int = ROWS) -> None:
        super().__init__(Setting(POLICIES["lynx"], budget), steps=forced.steps(rows))
        self.kinds = torch.full((rows,), int(RowClass.FLEXIBLE), dtype=torch.uint8)
        self.rule, self.budget, self.hidden = rule, budget, inputs_of(forced)

    def __call__(
        self, index: int, scores: Tensor, ids: Tensor, weights: Tensor, layer: Experts
    ) -> tuple[Tensor, Tensor]:
        own, mass = ids[self.steps], weights[self.steps]
        floors = torch.zeros(len(own), scores.shape[1], dtype=torch.bool)
        floors.scatter_(1, own.gather(2, mass.argmax(2, keepdim=True)).flatten(1), True)
        share, hidden = mass / mass.sum(2, keepdim=True), self.hidden[layer][self.steps]
        routing = Layer(index, layer, hidden, scores[self.steps], own, share, floors, self.budget)
        new_ids, new_weights = ids.clone(), weights.clone()
        for rows, allowed in zip(self.steps, self.rule(routing), strict=True):
            got = select(
                scores[rows], ids[rows], weights[rows], self.kinds, floor=ONE,
                budget=allowed.sum(dtype=torch.int32), contribution=allowed.float(),
                correction_bias=layer.bias,
            )  # fmt: skip
            new_ids[rows], new_weights[rows] = got.topk_ids, got.topk_weights
            self.active.append(got.num_active)
            self.retained.append(got.retained_mass)
        return new_ids, new_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    parser.add_argument("--problems", type=int, default=512, help="(%(default)s)")
    root = frontier.ROOT
    parser.add_argument(
        "--out", type=Path, default=root / "benchmarks/results/cpu/importance.jsonl"
    )
    arguments = parser.parse_args()
    for folder in arguments.models:
        model, tokenizer = load(folder)
        train, found = (
            Forced(model, transcribe(model, tokenizer, folder, *split, root / "build/frontier"))
            for split in (("train", 256, frontier.SEEDS["train"]),
                          ("validation", arguments.problems, SEED))
        )  # fmt: skip
        weigh, draws = contributions(train), draws_of(len(found.tasks))
        rules = {"p^4": power(4), "p^2": power(2), "p^6": power(6), "p^8": power(8)}
        rules |= {"p^4, contribution": power(4, weigh), "p^6, contribution": power(6, weigh)}
        rules |= {"p^4, contribution^2": power(4, [each**2 for each in weigh])}
        rules |= {"less substitute": less_substitute, "second pass": second_pass}
        rules |= {"greedy": greedy, "put out": put_out}
        full = Gate(Setting(POLICIES["full"]), steps=found.steps(ROWS))
        found.run(full)
        budget, base = round(full.mean_active() / 2), None
        for name, rule in rules.items():
            row = figures(found, Ruled(found, budget, rule))
            kl = mean_kl(row, draws)
            base = kl if base is None else base
            row |= {"model": folder.name, "rule": name, "over_p4": interval(kl / base)}
            kept = {key: value for key, value in row.items() if not key.endswith("_by_problem")}
            with arguments.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(kept) + "\n")
            print(
                folder.name,
                name,
                f"T {row['T']:.1f} KL {row['kl']:.2e}",
                row["over_p4"],
                flush=True,
            )


if __name__ == "__main__":
    main()
