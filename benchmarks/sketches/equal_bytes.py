"""KL of sketches over that of OEA where both read as many bytes, from the test rows of `run`.

    python -m benchmarks.sketches.equal_bytes

A step reads T experts and the factors of the sketches that its rows need, counted in experts. OEA
reads T experts: its KL between two of its settings is interpolated, logarithm by T, on each
bootstrap sample of the problems.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.frontier.bootstrap import Floats, draws_of, interval, mean_kl
from benchmarks.sketches.run import FLOORS, OUT, PERCENTS

Row = dict[str, Any]


def at_bytes(curve: Sequence[Row], experts: float, draws: Floats) -> Floats:
    """KL of a curve where it reads so many experts, [draws]."""
    by_bytes = sorted(curve, key=lambda row: float(row["T"]))
    logs = np.log([mean_kl(row, draws) for row in by_bytes])
    reads = [row["T"] for row in by_bytes]
    return np.exp([np.interp(experts, reads, logs[:, i]) for i in range(logs.shape[1])])


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = [json.loads(line) for line in OUT.read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "test"]
    ratios: dict[float, list[float]] = {}
    for model in sorted({row["model"] for row in rows}):
        mine = [row for row in rows if row["model"] == model]
        draws = draws_of(len(mine[0]["kl_by_problem"]))
        curve = [row for row in mine if row["form"] == "oea"]
        for share in FLOORS:
            for percent in PERCENTS["test"]:
                key = {"form": "sketch", "importance": "residual", "share": share}
                (row,) = [
                    each for each in mine if (key | {"percent": percent}).items() <= each.items()
                ]
                experts = row["T"] + row["read"]
                found = interval(mean_kl(row, draws) / at_bytes(curve, experts, draws))
                ratios.setdefault(percent, []).append(found[0])
                value, low, high = found
                print(
                    f"{model} {share:.0%}, sketches of {percent:g} %: {experts:.1f} experts read, "
                    f"{value:.2f} [{low:.2f}, {high:.2f}] of OEA's KL"
                )
    for percent, each in ratios.items():
        mean = np.exp(np.mean(np.log(each)))
        print(f"sketches of {percent:g} %: geometric mean {mean:.3f}, worst {max(each):.3f}")


if __name__ == "__main__":
    main()
