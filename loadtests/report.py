"""The demo's report: a row per run, as JSON and as a plain table."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loadtests.monitor import Sample, means, recovery_s
from loadtests.record import Record
from loadtests.summary import running

COLUMNS = (
    ("name", "", "{}"),
    ("itl_p50_ms", "ITL p50", "{:.1f}"),
    ("itl_p95_ms", "ITL p95", "{:.1f}"),
    ("slo_violation_rate", "late tokens", "{:.1%}"),
    ("tokens_per_s", "tokens/s", "{:.0f}"),
    ("accuracy_math", "math", "{:.1%}"),
    ("accuracy_code", "code", "{:.1%}"),
    ("mean_active_experts", "experts", "{:.1f}"),
    ("mean_retained_mass", "mass kept", "{:.3f}"),
    ("peak_running", "peak running", "{}"),
    ("requests", "requests", "{}"),
    ("failed", "failed", "{}"),
)


def row(
    name: str,
    records: Sequence[Record],
    summary: Mapping[str, Any],
    samples: Sequence[Sample],
    fell_s: float,
) -> dict[str, Any]:
    """One run's figures. What only Lynx can tell is null for a plain server."""
    whole = means(samples[0], samples[-1]) if samples else None
    itl_ms = summary["itl_ms"] or {}
    return {
        "name": name,
        "itl_p50_ms": itl_ms.get("p50"),
        "itl_p95_ms": itl_ms.get("p95"),
        "slo_violation_rate": summary["slo"]["violation_rate"],
        "tokens_per_s": summary["tokens_per_s"],
        "accuracy_math": summary["accuracy"].get("math"),
        "accuracy_code": summary["accuracy"].get("code"),
        "mean_active_experts": round(whole.active_experts, 3) if whole else None,
        "mean_retained_mass": round(whole.retained_mass, 5) if whole else None,
        "requests": summary["requests"],
        "failed": summary["failed"],
        "recovery_s": recovery_s(samples, summary["began_at"] + fell_s),
        "lowest_share": min((sample.share for sample in samples), default=None),
        "peak_running": max((running(records, record.sent_s) for record in records), default=0),
        "asked": summary["asked"],
        "itl_ms": summary["itl_ms"],
        "ttft_ms": summary["ttft_ms"],
        "tpot_ms": summary["tpot_ms"],
        "slo": summary["slo"],
        "client": summary["client"],
    }


def document(slo_ms: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "command": shlex.join(["python", "-m", "loadtests.demo", *sys.argv[1:]]),
        "slo_itl_ms": slo_ms,
        "runs": list(rows),
        "versions": {name: version(name) for name in ("sglang", "torch", "lynx-sglang", "locust")},
    }


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def table(document: Mapping[str, Any]) -> str:
    """The runs side by side; a dash where a figure does not exist."""
    lines = [[title for _, title, _ in COLUMNS]]
    for run in document["runs"]:
        cells = [(run[key], form) for key, _, form in COLUMNS]
        lines.append(["-" if value is None else form.format(value) for value, form in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    heading = f"SLO {document['slo_itl_ms']:g} ms per token, {document['machine']}"
    return "\n".join(["", heading, *rows, ""])
