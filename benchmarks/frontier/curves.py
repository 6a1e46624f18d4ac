"""The curves among a model's rows: KL over active experts, one for each policy and floor."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.frontier.bootstrap import Row

# Their curves' names go on with the floor.
OURS = (
    "lynx",
    "lynx, layers",
    "lynx, contributions",
    "lynx, layers, contributions",
    "lynx, demand",
)


def read(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """The header of a model's rows (how they were made), and the rows."""
    first, *lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return first, lines


def curves_of(rows: list[Row], num_rows: int) -> dict[str, list[Row]]:
    curves: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["stage"] == "curves" and row["M"] == num_rows:
            name = (
                row["curve"] if row["budget"] is None else f"{row['curve']}, floor {row['floor']}"
            )
            curves[name].append(row)
    return dict(curves)


def is_ours(name: str) -> bool:
    return name.startswith(OURS) and not name.startswith("lynx-")


def uncapped_of(rows: list[Row], split: str, num_rows: int) -> float | None:
    """Active experts of the full model; None where they were not measured."""
    for row in rows:
        if row["stage"] == "natural" and row["split"] == split and row["M"] == num_rows:
            return float(row["T"])
    return None
