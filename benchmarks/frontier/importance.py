"""Rules for an expert's importance beyond those of `select`, on validation problems.

    python -m benchmarks.frontier.importance models/lynx-moe-sigmoid models/lynx-moe-tiny
    python -m benchmarks.frontier.importance models/lynx-moe-tiny models/lynx-moe-deep \
        models/lynx-moe-sigmoid --seed 133 --rows 8 16 32 --shares 0.5 0.3 --caps layers \
        --rules "p^4, contribution" "p^6, contribution" "p^8, contribution"

KL over that of the first rule, with paired intervals; by default p^4 and all others at M = 16, T =
half of the uncapped one, one cap. Floor 1, or 0 at 30 %, as in run.py's answers. Layer offsets and
contributions are the ones that run.py measured. A second call continues an interrupted one.
"Put out" uses the outputs of a row's experts, which no router knows before they run: it bounds the
gain of any importance. Rows go to benchmarks/results/cpu/importance.jsonl.

The second command, and the same for the plain p^4, p^6 and p^8, chooses the policy's power. The
rule, from before its first row: the power whose KL over that of p^4, with contributions, has the
least geometric mean over the 18 cells (model, M, share), if that is below 0.95, and without
contributions at most 1; else 4.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.frontier.bench import ROOT
from benchmarks.frontier.bootstrap import Row, draws_of, interval, mean_kl
from benchmarks.frontier.candidates import ANSWER_SHARES, budget_of
from benchmarks.frontier.forced import Forced
from benchmarks.frontier.gate import Gate, Setting
from benchmarks.frontier.measure import figures
from benchmarks.frontier.rules import (
    Layer,
    Rule,
    greedy,
    less_substitute,
    power,
    put_out,
    second_pass,
)
from benchmarks.frontier.sensitivity import inputs_of, layer_budgets
from benchmarks.frontier.transcripts import transcribe
from lynx_kernels import POLICIES, RowClass, select
from models.checkpoint import load
from models.experts import Experts

RESULTS = ROOT / "benchmarks/results/cpu"
FLOORS = {share: floor for floor, shares in ANSWER_SHARES.items() for share in shares}
RULES = (
    "p^4",
    "p^2",
    "p^6",
    "p^8",
    "p^4, contribution",
    "p^6, contribution",
    "p^8, contribution",
    "p^4, contribution^2",
    "less substitute",
    "second pass",
    "greedy",
    "put out",
)


class Ruled(Gate):
    """A gate whose `select` finds the experts important that a rule allows, and no others."""

    def __init__(
        self, forced: Forced, budget: int | tuple[int, ...], rule: Rule, rows: int, floor: int = 1
    ) -> None:
        setting = Setting(POLICIES["lynx"], budget, None, floor)
        super().__init__(setting, steps=forced.steps(rows))
        self.kinds = torch.full((rows,), int(RowClass.FLEXIBLE), dtype=torch.uint8)
        self.rule, self.hidden = rule, inputs_of(forced)

    def __call__(
        self, index: int, scores: Tensor, ids: Tensor, weights: Tensor, layer: Experts
    ) -> tuple[Tensor, Tensor]:
        own, mass = ids[self.steps], weights[self.steps]
        floor, budget = self.setting.floor, self.setting.budget
        assert budget is not None
        floors = torch.zeros(len(own), scores.shape[1], dtype=torch.bool)
        strongest = mass.sort(dim=2, descending=True, stable=True).indices[..., :floor]
        floors.scatter_(1, own.gather(2, strongest).flatten(1), True)
        share, hidden = mass / mass.sum(2, keepdim=True), self.hidden[layer][self.steps]
        cap = budget[index] if isinstance(budget, tuple) else budget
        routing = Layer(index, layer, hidden, scores[self.steps], own, share, floors, cap)
        new_ids, new_weights = ids.clone(), weights.clone()
        for rows, allowed in zip(self.steps, self.rule(routing), strict=True):
            got = select(
                scores[rows], ids[rows], weights[rows], self.kinds, floor=torch.tensor(floor).int(),
                budget=allowed.sum(dtype=torch.int32), contribution=allowed.float(),
                correction_bias=layer.bias,
            )  # fmt: skip
            new_ids[rows], new_weights[rows] = got.topk_ids, got.topk_weights
            self.active.append(got.num_active)
            self.retained.append(got.retained_mass)
        return new_ids, new_weights


def rule_of(name: str, weigh: list[Tensor]) -> Rule:
    """A rule by its name in RULES; `weigh` has the layers' contributions."""
    others = {
        "less substitute": less_substitute,
        "second pass": second_pass,
        "greedy": greedy,
        "put out": put_out,
    }
    if name in others:
        return others[name]
    exponent, _, by = name.removeprefix("p^").partition(", ")
    weighing = {"": None, "contribution": weigh, "contribution^2": [each**2 for each in weigh]}
    return power(int(exponent), weighing[by])


def calibrated(model: str) -> tuple[list[float], list[Tensor]]:
    """Layer offsets and contributions, as run.py found them on training problems."""
    lines = (RESULTS / f"frontier/{model}.jsonl").read_text(encoding="utf-8").splitlines()
    found: Row = {}
    for row in map(json.loads, lines):
        found |= {key: row[key] for key in ("offsets", "contribution") if key in row}
    return found["offsets"], [torch.tensor(layer) for layer in found["contribution"]]


def is_done(name: str, about: dict[str, Any], done: list[Row]) -> bool:
    return any((about | {"rule": name}).items() <= row.items() for row in done)


def compare(
    forced: Forced, about: dict[str, Any], names: Sequence[str], done: list[Row]
) -> Iterator[Row]:
    """One row for each rule that is not `done`: its figures, and KL over that of the first."""
    if all(is_done(name, about, done) for name in names):
        return
    rows, share, floor = about["M"], about["share"], FLOORS[about["share"]]
    offsets, weigh = calibrated(about["model"])
    full = Gate(Setting(POLICIES["full"]), steps=forced.steps(rows))
    forced.run(full)
    uncapped = full.mean_active()
    by_layer = layer_budgets(offsets, share, uncapped)
    budget = by_layer if about["caps"] == "layers" else budget_of(share, uncapped)
    draws, base = draws_of(len(forced.tasks)), None
    for name in names:
        if base is not None and is_done(name, about, done):
            continue
        row = figures(forced, Ruled(forced, budget, rule_of(name, weigh), rows, floor))
        kl = mean_kl(row, draws)
        base = kl if base is None else base
        row |= about | {"rule": name, "over_p4": interval(kl / base)}
        if not is_done(name, about, done):
            yield {key: value for key, value in row.items() if not key.endswith("_by_problem")}


def rows_of(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    parser.add_argument("--problems", type=int, default=512, help="(%(default)s)")
    # A seed of its own: the first rules were found on the ablation's problems.
    parser.add_argument("--seed", type=int, default=132, help="of the problems (%(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[16], help="M (%(default)s)")
    parser.add_argument("--shares", type=float, nargs="+", choices=FLOORS, default=[0.5])
    parser.add_argument("--caps", choices=("one", "layers"), default="one")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--out", type=Path, default=RESULTS / "importance.jsonl")
    arguments = parser.parse_args()
    cells = [
        {"model": folder.name, "caps": arguments.caps, "seed": arguments.seed, "M": m, "share": s}
        for folder in arguments.models
        for m in arguments.rows
        for s in arguments.shares
    ]
    for folder in arguments.models:
        model, tokenizer = load(folder)
        split = ("validation", arguments.problems, arguments.seed)
        cache = ROOT / "build/frontier"
        forced = Forced(model, transcribe(model, tokenizer, folder, *split, cache))
        for cell in cells:
            if cell["model"] != folder.name:
                continue
            for row in compare(forced, cell, arguments.rules, rows_of(arguments.out)):
                with arguments.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
                print(*cell.values(), row["rule"], f"T {row['T']:.1f}", f"KL {row['kl']:.2e}",
                      row["over_p4"], flush=True)  # fmt: skip
    for name in arguments.rules:
        logs = [
            math.log(row["over_p4"][0])
            for row in rows_of(arguments.out)
            if any((cell | {"rule": name}).items() <= row.items() for cell in cells)
        ]
        print(f"{name}: {math.exp(sum(logs) / len(logs)):.3f}, geometric mean of {len(logs)} cells")


if __name__ == "__main__":
    main()
