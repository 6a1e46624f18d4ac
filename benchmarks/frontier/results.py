"""Rows of a run in a file of JSON lines: written one by one, read again by a later run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.frontier.gate import Setting

Key = tuple[Any, ...]


def key_of(stage: str, split: str, rows: int, setting: Setting) -> Key:
    policy, budget = setting.policy, setting.budget
    constants = (policy.confidence, policy.bin_width, policy.num_bins, policy.min_similarity)
    form = (policy.name, policy.importance.value, policy.is_refilling, policy.weights.value)
    key = (stage, split, rows, *form, *constants, budget, setting.demand, setting.floor)
    return (*key, "weighing") if setting.is_weighing else key


def _hashable(key: list[Any]) -> Key:
    return tuple(tuple(each) if isinstance(each, list) else each for each in key)


class Results:
    """The rows of one model, by what they measured. The first line says how they were made.

    Raises:
        ValueError: the file holds rows that were made with other problems or seeds.
    """

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file = file
        self.rows: dict[Key, dict[str, Any]] = {}
        about = json.loads(json.dumps(about))
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(about) + "\n", encoding="utf-8")
        first, *lines = file.read_text(encoding="utf-8").splitlines()
        for name in ("model", "problems", "seeds"):
            if json.loads(first)[name] != about[name]:
                raise ValueError(
                    f"{file}: expected rows made with {name} {about[name]}, "
                    f"got {json.loads(first)[name]}"
                )
        for line in lines:
            row = json.loads(line)
            self.rows[_hashable(row.pop("key"))] = row

    def add(self, key: Key, row: dict[str, Any]) -> None:
        self.rows[key] = row
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"key": key, **row}) + "\n")
        shown = {n: v for n, v in row.items() if not n.endswith("_by_problem") and n != "wrong"}
        print(len(self.rows), json.dumps(shown), file=sys.stderr, flush=True)
