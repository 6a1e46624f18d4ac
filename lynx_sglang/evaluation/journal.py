"""The rows of a measurement, on disk as they finish: a run that was interrupted goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lynx_sglang.evaluation.server import EvaluationError


class Journal:
    """JSON lines: what is measured, then one row for each finished piece of it."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Open or begin the file.

        Raises:
            EvaluationError: it is of another measurement; names what differs.
        """
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            # A process that was killed may leave half a line behind.
            whole = path.read_bytes().rpartition(b"\n")[0]
            try:
                lines = [json.loads(line) for line in whole.splitlines()]
            except ValueError:
                raise EvaluationError(
                    f"{path} has a line that is no JSON. Give another --out, or remove it."
                ) from None
            if lines:
                refuse_other(path, lines[0], manifest)
                self.rows = lines[1:]
                path.write_bytes(whole + b"\n")
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest) + "\n")

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def drop(self, key: dict[str, Any]) -> None:
        """Forget the rows that have these entries."""
        whole = self.path.read_text().splitlines()
        self.rows = [row for row in self.rows if not key.items() <= row.items()]
        self.path.write_text("\n".join([whole[0], *map(json.dumps, self.rows)]) + "\n")


def refuse_other(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    different = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if different:
        changes = "; ".join(
            f"{name} was {there.get(name)!r}, is {here.get(name)!r}" for name in different
        )
        raise EvaluationError(
            f"{path} is of another measurement ({changes}). Give another --out, or remove it."
        )
