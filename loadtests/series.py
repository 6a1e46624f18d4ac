"""The demo over time: what its pictures are drawn from, small enough to commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests.monitor import Sample, course
from loadtests.record import Record
from loadtests.summary import running, windows

RUNNING_INTERVAL_S = 0.5
AFTER_S = 10.0  # requests may still run this long after the load ended

Points = list[tuple[float, float]]  # (seconds since the load began, value)


@dataclass(frozen=True, slots=True)
class Series:
    """One run over time."""

    name: str
    late_share: float  # of all tokens, those later than the SLO
    itl_p95_ms: Points  # of each second that saw a token
    running: Points  # requests under way
    active_experts: Points  # mean over layers and steps between two readings; plain: none
    budget: Points  # mean over layers at each reading; plain: none
    num_experts: int | None  # of a layer; plain: None

    @classmethod
    def of(
        cls,
        name: str,
        records: Sequence[Record],
        summary: Mapping[str, Any],
        samples: Sequence[Sample],
        duration_s: float,
    ) -> Series:
        """From a run's raw records and readings; ``duration_s`` is the load's length."""
        gaps = [gap for record in records for gap in record.gaps]
        count = int((duration_s + AFTER_S) / RUNNING_INTERVAL_S)
        moments = [RUNNING_INTERVAL_S * step for step in range(count)]
        began_at = summary["began_at"]
        return cls(
            name=name,
            late_share=summary["slo"]["violation_rate"],
            itl_p95_ms=_rounded(windows(gaps, 95)),
            running=[(at_s, running(records, at_s)) for at_s in moments],
            active_experts=_rounded(
                [(each.at - began_at, each.active_experts) for each in course(samples)]
            ),
            budget=_rounded([(sample.at - began_at, sample.budget) for sample in samples]),
            num_experts=samples[0].num_experts if samples else None,
        )


@dataclass(frozen=True, slots=True)
class Demo:
    """All runs of one demo, under the same load."""

    source: str  # the command that made it
    slo_itl_ms: float
    edges_s: list[float]  # where the load's plateaus begin and end
    runs: list[Series]

    def write(self, path: Path) -> None:
        """JSON, one line for each run."""
        head = {"source": self.source, "slo_itl_ms": self.slo_itl_ms, "edges_s": self.edges_s}
        runs = ",\n".join(json.dumps(asdict(run)) for run in self.runs)
        path.write_text(f'{json.dumps(head)[:-1]}, "runs": [\n{runs}\n]}}\n')

    @classmethod
    def read(cls, path: Path) -> Demo:
        document = json.loads(path.read_text())
        runs = [
            Series(**{key: _points(value) for key, value in run.items()})
            for run in document["runs"]
        ]
        return cls(**{**document, "runs": runs})


def _points(value: Any) -> Any:
    """JSON has no tuples."""
    return [(at_s, each) for at_s, each in value] if isinstance(value, list) else value


def _rounded(points: Sequence[tuple[float, float]]) -> Points:
    return [(round(at_s, 2), round(value, 2)) for at_s, value in points]
