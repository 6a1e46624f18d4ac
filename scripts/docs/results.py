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


def sketches_table() -> str:
    """Servers at the same share of their experts, with a refill and with sketches."""
    rows = []
    for model, found in load("sketches_served.json").items():
        for refill, sketch in zip(found["refill"], found["sketch"], strict=True):
            is_full = refill["point"] == "budget full"
            forms = {"none": refill} if is_full else {"refill": refill, "sketches": sketch}
            rows += [(model, leg["point"], form, *figures_of(leg)) for form, leg in forms.items()]
    header = ("Model", "Setting", "Lost experts", "T", "KL, nats", "KL p99", "Maths", "Code")
    about = "`python -m benchmarks.sketches.served MODEL`, 16 requests at a time, test problems."
    return f"{about}\n\n{table(header, rows)}"


def figures_of(leg: dict[str, Any]) -> list[str]:
    """Active experts, KL and right answers of one leg of an evaluation."""
    right = (f"{each['share']:.1%}" for each in leg["accuracy"].values())
    return [f"{leg['active_experts']:.1f}", f"{leg['kl']:.1e}", f"{leg['kl_p99']:.1e}", *right]
