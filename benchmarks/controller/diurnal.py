"""Controllers over a day of 86,400 s on the simulated plant, second by second.

    python -m benchmarks.controller.diurnal

Arrivals go from 1 to 16 per s and back, with two peaks; an answer has 100 tokens. Controllers see
one step of each second (`benchmarks.plant.diurnal`); tests/benchmarks/plant/test_diurnal.py
measures the effect on the figures. BrownoutServe's window of 5 s holds 5 such steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.command import command
from benchmarks.controller.policies import MIN_MASS, BatchTable, BrownoutServe, Lynx, Policy
from benchmarks.plant.diurnal import run
from benchmarks.plant.simulator import Plant
from loadtests.progress import track
from lynx_controller import Controller, ControllerConfig, Slo

DAY_S = 86_400


def arrivals_per_s(second: int) -> float:
    hour = second / 3600.0
    bumps = math.exp(-(((hour - 11.0) / 3.0) ** 2)) + 0.8 * math.exp(-(((hour - 20.0) / 2.0) ** 2))
    return 1.0 + 15.0 * min(1.0, bumps)


def make_lynx(slo_ms: float, layers: int, experts: int, top_k: int) -> Lynx:
    config = ControllerConfig(min_retained_mass=MIN_MASS)
    return Lynx(Controller(Slo(itl_ms=slo_ms), layers, experts, top_k, config))


def diurnal(seed: int) -> dict[str, dict[str, float]]:
    plant = Plant(seed=seed, kv_ms=0.02)
    slo_ms = 1.1 * (plant.step_ms(28, plant.active_at(28, 0.6)) + 0.1)
    made: dict[str, Callable[[], Policy | Lynx]] = {
        "lynx": lambda: make_lynx(slo_ms, 8, 64, 4),
        "batch_table": lambda: BatchTable(slo_ms, plant.caps, plant=Plant(seed=seed, kv_ms=0.02)),
        "brownoutserve": lambda: BrownoutServe(slo_ms, plant.caps),
        "static 0.6": lambda: Policy(slo_ms, plant.caps, 0.6),
        "full": lambda: Policy(slo_ms, plant.caps),
    }
    found = {}
    for name, make in track([*made.items()], "controller", lambda item: item[0]):
        begun = time.perf_counter()
        seconds = run(
            Plant(seed=seed, kv_ms=0.02), make(), arrivals_per_s, DAY_S, slo_ms, seed=seed
        )
        tokens, late, mass = (
            np.array([getattr(each, column) for each in seconds])
            for column in ("tokens", "late", "mass")
        )
        found[name] = {
            "late": 100.0 * float((tokens * late).sum() / tokens.sum()),
            "mass": float((tokens * mass).sum() / tokens.sum()),
            "on_time": float((tokens * mass * (1.0 - late)).sum() / tokens.sum()),
            "seconds": time.perf_counter() - begun,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/diurnal.json"))
    options = parser.parse_args()
    found = diurnal(options.seed)
    print("| controller | tokens late, % | mass | on time | ran for, s |\n|---|---|---|---|---|")
    for name, row in found.items():
        print(
            f"| {name} | {row['late']:.1f} | {row['mass']:.3f} | {row['on_time']:.3f} | "
            f"{row['seconds']:.1f} |"
        )
    record = {"command": command(), "cores": os.cpu_count()}
    options.out.write_text(json.dumps(record | {"day": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
