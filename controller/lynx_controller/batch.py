"""The rows of one step, and the state that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from lynx_controller.types import Key, Observation, Phase


@dataclass(frozen=True, slots=True)
class Batch:
    key: Key  # phase and size class
    rows: int
    flexible: int  # rows that may be cut

    @classmethod
    def of(cls, phase: Phase, rows: int, size_class: int, flexible_rows: int | None) -> Batch:
        """Slot 0 is the next power of two of `rows`; a mixed step's rows are decoding ones."""
        kind = Phase.VERIFY if phase is Phase.VERIFY else Phase.DECODE
        rows = int(rows)
        size_class = int(size_class) if size_class > 0 else 1 << (rows - 1).bit_length()
        flexible = rows if flexible_rows is None else min(max(flexible_rows, 0), rows)
        return cls((kind, size_class), rows, flexible)

    @classmethod
    def seen(cls, seen: Observation) -> Batch:
        return cls.of(seen.phase, seen.rows, seen.size_class, seen.flexible_rows)
