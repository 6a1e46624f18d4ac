"""Summary of a load: latency, SLO attainment, throughput and accuracy from raw records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loadtests.percentile import percentile
from loadtests.record import Gap, Record

PERCENTS = (50, 90, 95, 99)


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Percentiles, rounded to a microsecond where the values are milliseconds."""
    if not values:
        return None
    points = {f"p{percent}": round(percentile(values, percent), 3) for percent in PERCENTS}
    return {**points, "max": round(max(values), 3)}


def itls_ms(gaps: Sequence[Gap]) -> list[float]:
    """One inter-token latency per token: a chunk of n tokens counts n times."""
    return [gap.itl_ms for gap in gaps for _ in range(gap.tokens)]


def violation_rate(latencies_ms: Sequence[float], slo_ms: float) -> float:
    """Share of tokens that came later than the SLO allows; 0 without tokens."""
    if not latencies_ms:
        return 0.0
    return sum(latency > slo_ms for latency in latencies_ms) / len(latencies_ms)


def windows(gaps: Sequence[Gap], percent: float, width_s: float = 1.0) -> list[tuple[float, float]]:
    """``(middle_s, percentile of the ITL)`` of each window that saw a token."""
    seen: dict[int, list[float]] = {}
    for gap in gaps:
        seen.setdefault(math.floor(gap.at_s / width_s), []).extend([gap.itl_ms] * gap.tokens)
    return [
        ((window + 0.5) * width_s, percentile(latencies, percent))
        for window, latencies in sorted(seen.items())
    ]


def accuracy(records: Sequence[Record], task: str) -> float | None:
    """Share of a task's requests with a right answer, failed ones wrong; None unless checked."""
    asked = [record for record in records if record.task == task]
    if not asked or any(record.correct is None for record in asked):
        return None
    return sum(record.correct is True for record in asked) / len(asked)


def running(records: Sequence[Record], at_s: float) -> int:
    """Requests that were under way at a moment."""
    return sum(record.sent_s <= at_s < record.end_s for record in records)


def summarise(
    records: Sequence[Record],
    *,
    slo_itl_ms: float | None,
    slo_attainment: float,
) -> dict[str, Any]:
    """The summary of a load as JSON; without records everything is null."""
    gaps = [gap for record in records for gap in record.gaps]
    latencies = itls_ms(gaps)
    tpots = [record.tpot_ms for record in records if record.tpot_ms is not None]
    failed = sum(record.error is not None for record in records)
    busy_s = max((r.end_s for r in records), default=0.0)
    busy_s -= min((r.sent_s for r in records), default=0.0)
    tokens = sum(record.tokens for record in records)
    tasks = sorted({record.task for record in records})
    summary: dict[str, Any] = {
        "requests": len(records),
        "failed": failed,
        "tokens": tokens,
        "tokens_per_s": round(tokens / busy_s, 2) if busy_s > 0 else None,
        "itl_ms": spread(latencies),
        "ttft_ms": spread([r.ttft_ms for r in records if r.ttft_ms is not None]),
        "tpot_ms": spread(tpots),
        "accuracy": {task: accuracy(records, task) for task in tasks},
        "asked": {task: sum(record.task == task for record in records) for task in tasks},
    }
    if slo_itl_ms is not None:
        tails = [value for _, value in windows(gaps, 95)]
        violated = violation_rate(latencies, slo_itl_ms)
        summary["slo"] = {
            "itl_ms": slo_itl_ms,
            "violation_rate": violated,
            "attainment": 1 - violated,
            "attainment_wanted": slo_attainment,
            "tpot_violation_rate": violation_rate(tpots, slo_itl_ms),
            "window_p95_violation_rate": violation_rate(tails, slo_itl_ms),
        }
    return summary


def faults(summary: dict[str, Any]) -> list[str]:
    """Reasons why a load failed; empty if it passed."""
    reasons = []
    if not summary["requests"]:
        reasons.append("no request was sent")
    if summary["failed"]:
        reasons.append(f"{summary['failed']} of {summary['requests']} requests failed")
    slo = summary.get("slo")
    if slo and not summary["itl_ms"]:
        reasons.append("no token gap was seen: nothing attained the SLO")
    elif slo and slo["attainment"] < slo["attainment_wanted"]:
        reasons.append(
            f"{slo['attainment']:.2%} of tokens within {slo['itl_ms']:g} ms, "
            f"wanted {slo['attainment_wanted']:.2%}"
        )
    return reasons
