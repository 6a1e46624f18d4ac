"""The experiment's record: its header, and its report as text."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cellscope.fleet import SAMPLES
from benchmarks.command import command


def header(seeds: int) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[2]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    return {
        "command": command(),
        "machine": f"{names[0].split(':')[1].strip() if names else platform.machine()}",
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
        "commit": commit.stdout.strip() or "unknown",
        "seeds": seeds,
        "fleet": "16 replicas x 4 layers, 2 accelerators x 2 hidden states, 5 % noise (fleet.py)",
    }


def report(record: dict[str, Any]) -> str:
    lines = [
        f"median absolute error, % (quartiles over {record['seeds']} fleets); samples per site:",
        *table(record["accuracy"]),
    ]
    lines += ["", "structure kept by ours, fleets: " + json.dumps(record["verdicts"])]
    lines += ["replica never seen, own samples: " + json.dumps(rounded(record["newcomer"]))]
    lines += ["", "| cost, us | p10 | p50 | p90 |", "|---|---|---|---|"]
    for name, each in record["cost"].items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in each.values()) + " |")
    lines += ["", "| change | " + " | ".join(next(iter(record["drift"]["delays"].values()))) + " |"]
    lines.append("|---" * 6 + "|")
    for name, each in record["drift"]["delays"].items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.2g}" for value in each.values()) + " |")
    for name in ("false_alarms", "false_alarms_with_stalls"):
        lines.append(f"{name}: {json.dumps(rounded(record['drift'][name]))}")
    lines += ["", "published: " + json.dumps(record["published"])]
    lines += [f"{name}: {json.dumps(rounded(each))}" for name, each in record["ratios"].items()]
    if record["recorded"] is not None:
        lines += ["", f"{record['recorded']['sites']} recorded sites, the same:"]
        lines += table(record["recorded"]["accuracy"])
    lines.append("")
    for name, each in record["bars"].items():
        lines.append(f"{'met ' if each['met'] else 'MISS'}  {name}: {each['measured']:.2f}")
    return "\n".join(lines)


def table(accuracy: dict[str, Any]) -> list[str]:
    lines = ["", "| model | " + " | ".join(map(str, SAMPLES)) + " |", "|---" * 7 + "|"]
    for name, by_n in accuracy.items():
        cells = [
            f"{by_n[str(n)]['median']:.1f} ({by_n[str(n)]['quartile_low']:.1f}-"
            f"{by_n[str(n)]['quartile_high']:.1f})"
            for n in SAMPLES
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 2) if isinstance(value, float) else value
