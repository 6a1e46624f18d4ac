"""Tables of measured results, made from the files under ``benchmarks/results``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.docs.markdown import table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "cpu"


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def demo_table() -> str:
    """The demo's servers under the same load."""
    rows = []
    demo = load("demo.json")
    for run in demo["runs"]:
        active, mass = run["mean_active_experts"], run["mean_retained_mass"]
        rows.append(
            (
                run["name"],
                f"{run['slo_violation_rate']:.1%}",
                f"{run['itl_p50_ms']:.1f}",
                f"{run['itl_p95_ms']:.1f}",
                f"{run['accuracy_math']:.1%}",
                f"{run['accuracy_code']:.1%}",
                "" if active is None else f"{active:.1f}",
                "" if mass is None else f"{mass:.3f}",
            )
        )
    header = (
        "Server", "Late tokens", "ITL p50, ms", "ITL p95, ms", "Maths", "Code", "Active experts",
        "Retained mass",
    )  # fmt: skip
    about = f"`make demo`, {demo['machine']}, SLO p95 ITL {demo['slo_itl_ms']:g} ms."
    return f"{about}\n\n{table(header, rows)}"


def decode_table() -> str:
    """Step times of plain SGLang and Lynx, experts as stored and eight times wider."""
    rows = []
    for label, name in (
        ("as stored", "decode_step.json"),
        ("8 times wider", "decode_step_x8.json"),
    ):
        run = load(name)
        for server, ms in run["step_ms"].items():
            active = run["active_experts"].get(server)
            rows.append(
                (
                    label,
                    server,
                    spread(ms, ".1f"),
                    spread(run["speedup"][server], ".2f"),
                    "" if active is None else f"{active:.1f}",
                )
            )
    header = ("Experts", "Server", "Step, ms", "Plain over this", "Active experts of 64")
    return table(header, rows)


def shadow_table() -> str:
    """The cost of shadow passes."""
    run = load("shadow_step.json")
    rows = [
        (f"{float(share):g}", spread(run["step_ms"][share], ".1f"), spread(ratio, ".2f"))
        for share, ratio in run["ratio"].items()
    ]
    return table(("Share of steps shadowed", "Step, ms", "Over no shadow"), rows)


def spread(values: dict[str, float], form: str) -> str:
    """Median and quartiles."""
    return f"{values['median']:{form}} [{values['q1']:{form}}, {values['q3']:{form}}]"
