"""One request's raw record, a JSON line each, and the gaps between its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from loadtests.stream import Exchange


@dataclass(frozen=True, slots=True)
class Gap:
    """Time between two chunks of a stream; the second brought ``tokens`` tokens.

    Each of them is charged an equal share of the gap, as in ``sglang:inter_token_latency_seconds``
    and in ``bench_serving`` with its backend ``sglang``.
    """

    at_s: float  # when the second chunk arrived, since the load began
    gap_ms: float
    tokens: int

    @property
    def itl_ms(self) -> float:
        return self.gap_ms / self.tokens


@dataclass(frozen=True, slots=True)
class Record:
    """One request: its problem, its times (seconds since the load began) and its answer."""

    index: int
    task: str
    problem: int  # index among the task's problems
    due_s: float
    sent_s: float
    end_s: float
    ttft_ms: float | None = None
    tokens: int = 0
    finish_reason: str | None = None
    text: str = ""
    error: str | None = None
    correct: bool | None = None  # None until checked
    gaps: list[Gap] = field(default_factory=list)

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first, up to the stream's end, as ``bench_serving``'s."""
        if self.error is not None or self.ttft_ms is None or self.tokens < 2:
            return None
        return ((self.end_s - self.sent_s) * 1e3 - self.ttft_ms) / (self.tokens - 1)


def gaps_of(exchange: Exchange, origin_s: float) -> list[Gap]:
    chunks = exchange.chunks
    return [
        Gap(later.at_s - origin_s, (later.at_s - earlier.at_s) * 1e3, later.tokens)
        for earlier, later in pairwise(chunks)
    ]


def answered(asked: Record, exchange: Exchange, origin_s: float) -> Record:
    """``asked`` with what came back."""
    return replace(
        asked,
        sent_s=exchange.sent_s - origin_s,
        end_s=exchange.end_s - origin_s,
        ttft_ms=exchange.ttft_ms,
        tokens=exchange.completion_tokens,
        finish_reason=exchange.finish_reason,
        text=exchange.text,
        gaps=gaps_of(exchange, origin_s),
    )


def write(path: Path, records: Iterable[Record]) -> None:
    """JSON lines; a gap is written ``[at_s, gap_ms, tokens]``."""
    with path.open("w") as file:
        for record in records:
            line = asdict(record)
            line["gaps"] = [
                [round(gap.at_s, 6), round(gap.gap_ms, 4), gap.tokens] for gap in record.gaps
            ]
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[Record]:
    with path.open() as file:
        lines = [json.loads(line) for line in file]
    return [Record(**{**line, "gaps": [Gap(*gap) for gap in line["gaps"]]}) for line in lines]
