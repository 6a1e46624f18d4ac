"""The frontier: accuracy and KL against the active experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG; needs matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    legs = [leg for leg in report["legs"] if leg["active_experts"] is not None]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    right, far = figure.subplots(1, 2)
    for streams in sorted({leg["concurrency"] for leg in legs}):
        mine = sorted(
            (leg for leg in legs if leg["concurrency"] == streams),
            key=lambda leg: leg["active_experts"],
        )
        experts = [leg["active_experts"] for leg in mine]
        far.plot(experts, [leg["kl"] for leg in mine], "o-", label=f"{streams} at a time")
        for name in mine[0]["accuracy"]:
            shares = [leg["accuracy"][name]["share"] * 100 for leg in mine]
            right.plot(experts, shares, "o-", label=f"{name}, {streams} at a time")
    right.set(xlabel="active experts of a layer", ylabel="right answers, %")
    far.set(xlabel="active experts of a layer", ylabel="KL to the full model, nats/token")
    far.set_yscale("log")
    for axes in (right, far):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{Path(report['model']).name}, policy {report['policy']}")
    figure.savefig(path, dpi=120)
