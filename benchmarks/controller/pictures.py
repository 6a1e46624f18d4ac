"""One picture per scenario: rows, gaps over the SLO, share; seed 0."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.controller.figures import Run
from benchmarks.controller.scenarios import Scenario
from benchmarks.plant.metrics import windowed_ms

FOLDER = Path("benchmarks/results/cpu/controller")
COLOURS = {"lynx": "C0", "pi": "C1", "brownoutserve": "C2", "best_static": "0.6"}


def draw(scenario: Scenario, runs: dict[str, Run]) -> None:
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(7.0, 5.0), height_ratios=(1, 2, 2), layout="constrained"
    )
    axis = "step" if scenario.loads else "time, s"
    for name, run in runs.items():
        at = list(range(len(run.samples)))
        if not scenario.loads:
            total = 0.0
            at = [total := total + each.gap_ms / 1e3 for each in run.samples]  # type: ignore[misc]
        style = {"color": COLOURS[name], "label": name, "linewidth": 0.9}
        if name == "lynx":
            top.plot(at, [each.load.rows for each in run.samples], color="black", linewidth=0.9)
        p95 = windowed_ms(run.ratios, 95.0, 64)
        middle.plot(at[63:], [min(each, 2.5) for each in p95], **style)
        bottom.plot(at, [each.share for each in run.samples], **style)
    middle.axhline(1.0, color="black", linewidth=0.6, linestyle=":")
    top.set(ylabel="rows", title=f"{scenario.name} (seed 0)")
    middle.set(ylabel="p95 gap of 64 / SLO")
    bottom.set(ylabel="share", xlabel=axis, ylim=(0.45, 1.03))
    bottom.legend(loc="lower left", ncols=4, fontsize=7)
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{scenario.name}.png", dpi=70)
    plt.close(figure)
