"""The frontier's two pictures: one panel of three curves, and every policy on every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.frontier.bootstrap import Row
from benchmarks.frontier.curves import curves_of, is_ours, uncapped_of

matplotlib.use("Agg")
from matplotlib import pyplot

Model = tuple[str, list[Row]]

# Of the three models, the one on which the calibrated policy gains neither most nor least.
PANEL_MODEL, PANEL_ROWS = "lynx-moe-deep", 16
# Label, Okabe and Ito's colour, marker. A server's floor is 1 at least.
PANEL = {
    "oea": ("OEA, the best published policy", "#D55E00", "s"),
    "lynx, floor 1": ("Lynx, one cap for all layers", "#56B4E9", "o"),
    "lynx, layers, contributions, floor 1": ("Lynx, calibrated", "#0072B2", "D"),
}
SHARE = "active experts, share of the full model's"
SHOWN_ROWS = (8, 16, 32)
NOT_DRAWN = "lynx, contributions"  # between those beside it
LEAST_KL = 1e-7  # of the logarithmic axis


def draw_panel(models: list[Model], file: Path) -> None:
    """Three curves of one model at one batch size; readable at a phone's width.

    Raises:
        KeyError: the model or a curve was not measured.
    """
    rows = dict(models)[PANEL_MODEL]
    uncapped, curves = uncapped_of(rows, "test", PANEL_ROWS), curves_of(rows, PANEL_ROWS)
    with pyplot.rc_context({"font.size": 15}):
        figure, axis = pyplot.subplots(figsize=(7, 5.4), layout="constrained")
        for name, (label, colour, marker) in PANEL.items():
            style = {"color": colour, "marker": marker, "label": label}
            axis.plot(*_points(curves[name], uncapped), linewidth=2.4, markersize=9, **style)
        axis.set(yscale="log", xlim=(0.2, 1.0), xlabel=SHARE)
        axis.set_title("KL to the full model (nats per token)", fontsize="medium", loc="left")
        axis.xaxis.set_major_formatter("{x:.0%}")
        axis.grid(alpha=0.4)
        axis.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper left", frameon=False, handlelength=1.8)
        figure.savefig(file, dpi=160)
        pyplot.close(figure)


def draw_details(models: list[Model], file: Path) -> None:
    """Every policy: one row of panels for each model, one column for each batch size."""
    shape = (len(models), len(SHOWN_ROWS))
    measured = {name for _, rows in models for m in SHOWN_ROWS for name in curves_of(rows, m)}
    names = sorted(name for name in measured if not name.startswith(NOT_DRAWN))
    names.sort(key=is_ours, reverse=True)
    colours = {name: matplotlib.colormaps["tab20"](place) for place, name in enumerate(names)}
    figure, axes = pyplot.subplots(
        *shape, figsize=(13, 4.2 * shape[0]), squeeze=False, sharey="row", layout="constrained"
    )
    for (model, rows), line in zip(models, axes, strict=True):
        for num_rows, axis in zip(SHOWN_ROWS, line, strict=True):
            uncapped = uncapped_of(rows, "test", num_rows)
            for name, curve in curves_of(rows, num_rows).items():
                if name not in names:
                    continue
                style: dict[str, Any] = {"lw": 1, "marker": ".", "ls": "--", "zorder": 2}
                if is_ours(name):
                    style = {"lw": 2.5, "marker": "o", "zorder": 3}
                axis.plot(*_points(curve, uncapped), label=name, color=colours[name], **style)
            axis.set(yscale="log", title=f"{model}, {num_rows} rows", xlabel=SHARE)
            axis.grid(alpha=0.3)
        line[0].set_ylabel("KL to the full model, nats per token")
    drawn = [axis.get_legend_handles_labels() for axis in axes.flat]
    found = {
        name: line for lines, labels in drawn for line, name in zip(lines, labels, strict=True)
    }
    figure.legend([found[name] for name in names], names, loc="outside right center")
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _points(curve: list[Row], uncapped: float | None) -> tuple[list[float], list[float]]:
    """Shares of the full model's active experts, and the KL at each."""
    assert uncapped is not None
    rows = sorted(curve, key=lambda row: float(row["T"]))
    return [row["T"] / uncapped for row in rows], [max(row["kl"], LEAST_KL) for row in rows]
