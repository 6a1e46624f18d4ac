"""The demo's two pictures: one panel for the README, three for the documentation.

    python -m loadtests.picture benchmarks/results/cpu/demo_series.json --out docs

Writes ``demo.png`` and ``demo-details.png`` under ``--out``. A file without the details' series
gives ``demo.png`` alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from loadtests.series import Demo, Points, Series

LABELS = {"sglang": "plain SGLang", "lynx": "Lynx", "lynx-full": "Lynx, full budget"}
# Okabe and Ito's colours, told apart without colour vision by lightness and width.
COLOURS = {"sglang": "#D55E00", "lynx": "#0072B2", "lynx-full": "#56B4E9"}
WIDTHS = {"sglang": 1.6, "lynx": 2.8, "lynx-full": 1.6}
INK, BUDGET, LOADED = "#222222", "#009E73", "#EEEEEE"
PLAIN_RUNS = ("sglang", "lynx")
LATENCY = "time between tokens, p95 of each second (ms)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", type=Path, help="series.json of a demo")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    draw(options.out, Demo.read(options.series))


def draw(folder: Path, demo: Demo) -> None:
    draw_plain(folder / "demo.png", demo)
    if all(run.running for run in demo.runs):
        draw_details(folder / "demo-details.png", demo)


def draw_plain(path: Path, demo: Demo) -> None:
    """Two lines against the SLO; readable at a phone's width."""
    with pyplot.rc_context({"font.size": 15}):
        figure, axis = pyplot.subplots(figsize=(7, 5), layout="constrained")
        for run in demo.runs:
            if run.name in PLAIN_RUNS:
                label = f"{LABELS[run.name]}: {run.late_share:.1%} of tokens late"
                _line(axis, run, run.itl_p95_ms, label)
        _slo(axis, demo)
        _frame(axis, demo)
        axis.set_title(LATENCY, fontsize="medium", loc="left")
        axis.set_xlabel("seconds; grey: high load")
        figure.legend(loc="outside upper left", frameon=False, handlelength=1.2)
        figure.savefig(path, dpi=160)
        pyplot.close(figure)


def draw_details(path: Path, demo: Demo) -> None:
    """Latency, experts and load of all runs."""
    with pyplot.rc_context({"font.size": 12}):
        figure, axes = pyplot.subplots(
            3, 1, figsize=(9, 10), sharex=True, height_ratios=(3, 2.4, 1.6), layout="constrained"
        )
        latency, experts, load = axes
        for run in demo.runs:
            _line(latency, run, run.itl_p95_ms, LABELS[run.name])
            _line(experts, run, run.active_experts)
            _line(load, run, run.running)
            if run.name == "lynx":
                _capped(experts, run)
        _slo(latency, demo)
        titles = (LATENCY, "active experts of a layer, mean", "running requests")
        for axis, title in zip(axes, titles, strict=True):
            _frame(axis, demo)
            axis.set_title(title, fontsize="medium", loc="left")
        load.set_xlabel("seconds; grey: high load")
        figure.legend(loc="outside lower center", ncols=4, frameon=False, handlelength=1.5)
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


def _line(axis: Any, run: Series, points: Points, label: str | None = None) -> None:
    if points:
        width = WIDTHS[run.name]  # the widest line lies on top
        style = {"color": COLOURS[run.name], "linewidth": width, "zorder": width, "label": label}
        axis.plot(*zip(*points, strict=True), **style)


def _capped(axis: Any, run: Series) -> None:
    """The budget wherever it is below all experts."""
    assert run.num_experts is not None
    caps = [(at_s, cap if cap < run.num_experts else None) for at_s, cap in run.budget]
    style = {"color": BUDGET, "linewidth": 1.8, "label": "Lynx: cap in force"}
    axis.step(*zip(*caps, strict=True), where="post", **style)


def _slo(axis: Any, demo: Demo) -> None:
    axis.axhline(demo.slo_itl_ms, color=INK, linestyle="--", linewidth=1.6)
    text = f"SLO\n{demo.slo_itl_ms:g} ms"
    # Left of the high load both servers are far below the SLO.
    place = (demo.edges_s[0] + 1, demo.slo_itl_ms)
    style = {"textcoords": "offset points", "va": "bottom", "fontsize": "small", "color": INK}
    axis.annotate(text, place, (0, 4), **style)


def _frame(axis: Any, demo: Demo) -> None:
    axis.axvspan(demo.edges_s[1], demo.edges_s[-2], color=LOADED, zorder=0)
    axis.set_xlim(demo.edges_s[0], demo.edges_s[-1])
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", alpha=0.4)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
