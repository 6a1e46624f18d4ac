"""The demo's picture: latency, experts and load over time, one line per run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from loadtests.monitor import Sample, course
from loadtests.record import Record
from loadtests.shapes import Shape
from loadtests.summary import running, windows

COLOURS = {"sglang": "tab:gray", "lynx": "tab:green", "lynx-full": "tab:blue"}
LABELS = {"sglang": "plain SGLang", "lynx": "Lynx", "lynx-full": "Lynx, full budget"}


class Run(Protocol):
    """What is drawn of a run."""

    @property
    def name(self) -> str: ...
    @property
    def records(self) -> list[Record]: ...
    @property
    def summary(self) -> dict[str, Any]: ...
    @property
    def samples(self) -> list[Sample]: ...


def draw(path: Path, runs: Sequence[Run], slo_ms: float, shape: Shape) -> None:
    figure, (latency, quality, load) = pyplot.subplots(
        3, 1, figsize=(10, 9), sharex=True, height_ratios=(3, 2.4, 1.6), layout="constrained"
    )
    for run in runs:
        gaps = [gap for record in run.records for gap in record.gaps]
        style = {"color": COLOURS[run.name], "label": LABELS[run.name]}
        points = windows(gaps, 95)
        latency.plot(*zip(*points, strict=True), **style)
        moments = [0.5 * step for step in range(int(2 * shape.duration_s) + 20)]
        load.plot(moments, [running(run.records, at_s) for at_s in moments], **style)
        draw_experts(quality, run, style)
    latency.axhline(slo_ms, color="tab:red", linestyle="--", label=f"SLO {slo_ms:g} ms")
    latency.set_ylabel("ITL, p95 of each second (ms)")
    latency.set_ylim(bottom=0)
    latency.set_title("The same load step on plain SGLang and on Lynx")
    quality.set_ylabel("experts per layer and step")
    load.set_ylabel("running requests")
    load.set_xlabel("seconds since the load began")
    for axis in (latency, quality, load):
        for edge_s in shape.edges_s[1:-1]:
            axis.axvline(edge_s, color="black", linewidth=0.6, linestyle=":")
        axis.grid(alpha=0.25)
        axis.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_experts(axis: Any, run: Run, style: dict[str, Any]) -> None:
    """Active experts of any Lynx run; the controlled run's budget and share too."""
    began_at = run.summary["began_at"]
    means = course(run.samples)
    if not means:
        return
    times = [each.at - began_at for each in means]
    active = f"active, {style['label']}"
    axis.plot(times, [each.active_experts for each in means], color=style["color"], label=active)
    if run.name != "lynx":
        return
    moments = [sample.at - began_at for sample in run.samples]
    budgets = [sample.budget for sample in run.samples]
    axis.step(moments, budgets, where="post", color="tab:olive", linewidth=1, label="budget")
    axis.set_ylim(0, run.samples[0].num_experts * 1.05)
    share = axis.twinx()
    shares = [sample.share for sample in run.samples]
    share.step(moments, shares, where="post", color="tab:purple", linewidth=1, label="share")
    share.set_ylim(0, 1.05)
    share.set_ylabel("share of the experts wanted")
    share.legend(loc="lower right", fontsize="small")
