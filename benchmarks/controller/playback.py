"""Controllers on a recorded server.

    python -m benchmarks.controller.playback DECISIONS --slo-ms 12 --name law
    python -m benchmarks.controller.playback DECISIONS --slo-ms 12 --name passes --passes PASSES

DECISIONS is Lynx's decision log. PASSES is SGLang's record of a server without Lynx
(record_passes.py); the cost of experts then comes from DECISIONS. `recording.py` makes both under
the demo's load. Prints a table and adds it to benchmarks/results/cpu/playback.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.controller.policies import FLOOR, MIN_MASS, BrownoutServe, Lynx, Pi, Policy
from benchmarks.controller.report import rounded
from benchmarks.plant.playback import Playback
from benchmarks.plant.simulator import Sample, simulate
from lynx_controller import Controller, ControllerConfig, Slo

LAG_STEPS = 1  # a decision rules the next step on the CPU server


def figures(samples: list[Sample], slo_ms: float) -> dict[str, float]:
    """Of tokens: late in %, mass kept, mass on time; share and gaps of steps."""
    rows = np.array([each.load.rows for each in samples], dtype=float)
    is_late = np.array([each.gap_ms > slo_ms for each in samples])
    mass = np.array([each.mass for each in samples])
    gaps_ms = [each.gap_ms for each in samples]
    return {
        "late": 100.0 * float((rows * is_late).sum() / rows.sum()),
        "mass": float((rows * mass).sum() / rows.sum()),
        "on_time": float((rows * mass * ~is_late).sum() / rows.sum()),
        "share": float(np.mean([each.share for each in samples])),
        "p50_ms": float(np.percentile(gaps_ms, 50)),
        "p95_ms": float(np.percentile(gaps_ms, 95)),
    }


def as_served(played: Playback) -> list[Sample]:
    """The server's own steps, under the decisions that it ran."""
    return [
        played.run(load, (1.0, played.caps_of(seen)))[1]
        for load, seen in zip(played.loads, played.recorded, strict=True)
    ]


def policies(played: Playback, slo_ms: float) -> dict[str, Callable[[], Policy | Lynx]]:
    sizes = played.num_layers, played.num_experts, played.top_k
    config = ControllerConfig(min_retained_mass=MIN_MASS)
    fixed = {f"static {each:g}": each for each in (FLOOR, 0.7, 0.9)} | {"full": 1.0}
    found: dict[str, Callable[[], Policy | Lynx]] = {
        "lynx": lambda: Lynx(Controller(Slo(itl_ms=slo_ms), *sizes, config)),
        "pi": lambda: Pi(slo_ms, played.caps),
        "brownoutserve": lambda: BrownoutServe(slo_ms, played.caps),
    }
    return found | {name: partial(Policy, slo_ms, played.caps, at) for name, at in fixed.items()}


def play(log: Path, passes: Path | None, slo_ms: float) -> dict[str, dict[str, float]]:
    found = {"as served": figures(as_served(Playback(log, passes)), slo_ms)}
    for name, make in policies(Playback(log, passes), slo_ms).items():
        played, policy = Playback(log, passes), make()
        found[name] = figures(simulate(played, policy, played.loads, LAG_STEPS), slo_ms)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="a server's --lynx-decision-log")
    parser.add_argument("--passes", type=Path, help="SGLang's record of its forward passes")
    parser.add_argument("--slo-ms", type=float, required=True)
    parser.add_argument("--name", required=True, help="of the recording, in the results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/playback.json"))
    options = parser.parse_args()
    played = Playback(options.log, options.passes)
    found = play(options.log, options.passes, options.slo_ms)
    print(f"{len(played.loads)} steps, {played.slope_ms:.4f} ms per expert\n")
    print("| controller | tokens late, % | mass | on time | share | p50, ms | p95, ms |")
    print("|---|---|---|---|---|---|---|")
    for name, row in found.items():
        print(
            f"| {name} | {row['late']:.1f} | "
            + " | ".join(
                f"{row[each]:.3f}" for each in ("mass", "on_time", "share", "p50_ms", "p95_ms")
            )
            + " |"
        )
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    options_of = "DECISIONS --slo-ms MS --name NAME [--passes PASSES]"
    record["command"] = f"python -m benchmarks.controller.playback {options_of}"
    record[options.name] = {
        "slo_ms": options.slo_ms,
        "cores": os.cpu_count(),
        "steps": len(played.loads),
        "slope_ms": played.slope_ms,
        "controllers": found,
    }
    options.out.write_text(json.dumps(rounded(record), indent=1) + "\n")


if __name__ == "__main__":
    main()
