"""Loss of a cut whose lost experts leave low-rank sketches, by bytes of sketches.

Sketches are fitted on training problems. The form (importance by what an expert puts out, or by
what its sketch misses) is chosen on validation problems: the least geometric mean of KL over that
of the base, over models, shares and budgets. Test problems are run once, for the final table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.frontier.bench import ROOT, SEEDS
from benchmarks.frontier.forced import Forced
from benchmarks.frontier.gate import Gate, Setting
from benchmarks.frontier.importance import calibrated
from benchmarks.frontier.measure import figures
from benchmarks.frontier.sensitivity import layer_budgets
from benchmarks.frontier.transcripts import transcribe
from benchmarks.sketches.fitted import fitted
from benchmarks.sketches.sketched import Sketched, sketching
from lynx_kernels import POLICIES
from lynx_sglang.calibrate.sketch_budget import Budgeted, within
from lynx_sglang.calibrate.sketch_layer import FittedLayer
from models.checkpoint import load
from models.model import Model

OUT = ROOT / "benchmarks/results/cpu/sketches.jsonl"
PROBLEMS = {"train": 256, "validation": 64, "test": 192}
PERCENTS = {"validation": (2, 10), "test": (0.5, 1, 2, 5, 10, 20)}  # of the experts' bytes
FLOORS = {0.5: 1, 0.3: 0}  # by share of the uncapped T
OEA_RANKS = (1, 2, 3)
ROWS = 16
Row = dict[str, Any]


def expert_values(model: Model) -> int:
    """Numbers of one expert."""
    layer = model.moe_layers()[0]
    return layer.gate_up[0].numel() + layer.down[0].numel()


def budgeted(model: Model, sketches: dict[int, FittedLayer], percent: float) -> Budgeted:
    experts = sum(len(layer.down) for layer in model.moe_layers())
    return within(sketches, int(percent / 100 * experts * expert_values(model)))


def plain(forced: Forced, setting: Setting, weigh: list[torch.Tensor] | None) -> Row:
    return figures(forced, Gate(setting, steps=forced.steps(ROWS), contribution=weigh))


def with_sketches(
    forced: Forced, setting: Setting, weigh: list[torch.Tensor], found: Budgeted
) -> Row:
    """A setting's figures; `read` counts the sketches' bytes of a layer's step in experts."""
    gate = Sketched(
        setting,
        steps=forced.steps(ROWS),
        contribution=weigh,
        factors=[each.sketches for each in found.layers.values()],
    )
    with sketching(forced.model, gate):
        row = figures(forced, gate)
    row["read"] = gate.values_per_layer() / expert_values(forced.model)
    return row


def cells(
    name: str, forced: Forced, sketches: dict[int, FittedLayer], split: str, importances: list[str]
) -> Iterator[Row]:
    """Rows of one model and split."""
    offsets, weigh = calibrated(name)
    full = Gate(Setting(POLICIES["full"]), steps=forced.steps(ROWS))
    forced.run(full)
    lynx = POLICIES["lynx"]
    without_refill = replace(lynx, is_refilling=False)
    for rank in OEA_RANKS if split == "test" else ():
        yield {"form": "oea", "rank": rank} | plain(
            forced, Setting(POLICIES["oea"], None, 0.0, rank), None
        )
    for share, floor in FLOORS.items():
        caps = layer_budgets(offsets, share, full.mean_active())
        about = {"share": share, "uncapped": full.mean_active()}
        base = Setting(lynx, caps, None, floor, is_weighing=True)
        yield about | {"form": "lynx"} | plain(forced, base, weigh)
        setting = replace(base, policy=without_refill)
        yield about | {"form": "no refill"} | plain(forced, setting, weigh)
        for percent in PERCENTS[split]:
            found = budgeted(forced.model, sketches, percent)
            about |= {
                "percent": percent,
                "unexplained": sum(found.unexplained.values()) / len(found.unexplained),
                "mean_rank": sum(map(sum, found.ranks.values()))
                / sum(map(len, found.ranks.values())),
            }
            residual = [each.contribution for each in found.layers.values()]
            for importance in importances:
                by = weigh if importance == "output" else residual
                row = with_sketches(forced, setting, by, found)
                yield about | {"form": "sketch", "importance": importance} | row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder that the frontier has measured")
    parser.add_argument("--split", choices=PERCENTS, default="validation")
    parser.add_argument("--importance", nargs="+", choices=("output", "residual"),
                        default=["output", "residual"], help="(both)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(arguments.model)

    def forced(split: str) -> Forced:
        wanted = (split, PROBLEMS[split], SEEDS[split], ROOT / "build/frontier")
        return Forced(model, transcribe(model, tokenizer, arguments.model, *wanted))

    sketches = fitted(forced("train"))
    name, split = arguments.model.name, arguments.split
    for row in cells(name, forced(split), sketches, split, arguments.importance):
        row = {"model": name, "split": split, **row}
        with arguments.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        shown = ("form", "share", "percent", "rank", "importance", "T", "read", "kl", "kl_p99",
                 "agreement", "unexplained", "mean_rank")  # fmt: skip
        print(name, {key: row[key] for key in shown if key in row}, flush=True)


if __name__ == "__main__":
    main()
