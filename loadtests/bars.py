"""The demo's pass or fail bars, each with its measured figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VIOLATIONS_RATIO = 3  # plain's rate over Lynx's, at least
ACCURACY_POINTS = 2.0
RECOVERY_S = 5.0
TASKS = ("math", "code")


@dataclass(frozen=True, slots=True)
class Bar:
    """One requirement, its measured figure, and whether it is met."""

    name: str
    figure: str
    is_met: bool

    def __str__(self) -> str:
        return f"{'pass' if self.is_met else 'FAIL'}  {self.name}: {self.figure}"


def judge(plain: Mapping[str, Any], lynx: Mapping[str, Any]) -> list[Bar]:
    """The bars over two rows of the report."""
    bars = [
        Bar(
            f"{run['name']}: no failed request",
            f"{run['failed']} of {run['requests']}",
            run["requests"] > 0 and run["failed"] == 0,
        )
        for run in (plain, lynx)
    ]
    before, after = plain["slo_violation_rate"], lynx["slo_violation_rate"]
    bars.append(Bar("the SLO binds: plain violates it", f"{before:.1%} of tokens", before > 0))
    bars.append(
        Bar(
            "violation rate at most a third of plain's",
            f"{after:.1%} against {before:.1%}",
            VIOLATIONS_RATIO * after <= before + 1e-9,
        )
    )
    for task in TASKS:
        right, reference = lynx[f"accuracy_{task}"], plain[f"accuracy_{task}"]
        count = lynx["asked"][task]
        bars.append(
            Bar(
                f"{task} accuracy at most {ACCURACY_POINTS:g} points below plain's",
                f"{right:.1%} against {reference:.1%} (n {count})",
                (reference - right) * 100 <= ACCURACY_POINTS + 1e-9,
            )
        )
    recovery_s = lynx["recovery_s"]
    bars.append(
        Bar(
            f"budget back at full within {RECOVERY_S:g} s after the load fell",
            "not before the end" if recovery_s is None else f"{recovery_s:.1f} s",
            recovery_s is not None and recovery_s <= RECOVERY_S,
        )
    )
    return bars
