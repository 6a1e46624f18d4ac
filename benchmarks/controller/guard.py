"""Does the quality guard hold its limit? Mean KL over the limit, on a plant whose KL is known.

    python -m benchmarks.controller.guard

16 rows, and an SLO that no cap meets, so that the guard alone bounds the caps; least retained mass
0.2, limit 0.01 nats, one capped step in 20 shadowed. KL is gain * lost mass^bend, carried by a
share of the tokens. Prints a table of the first 3,000 of 6,000 steps and of the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.command import command
from benchmarks.plant.simulator import Load, Plant, Setting, simulate
from lynx_controller import Controller, ControllerConfig, Observation, Slo

LIMIT = 0.01
SEEDS = range(16)


def mean_kl(seed: int, gain: float, bend: float, rare: float) -> tuple[float, float]:
    """KL over the limit: mean of the first 3,000 steps, and of the rest."""
    config = ControllerConfig(max_quality_loss=LIMIT, min_retained_mass=0.2)
    controller = Controller(Slo(itl_ms=9.0), 8, 64, 4, config)

    def decide(seen: Observation) -> Setting:
        decision = controller.step(seen)
        return decision.demand, decision.budget

    plant = Plant(seed=seed, kl_gain=gain, kl_bend=bend, kl_rare=rare, shadow_share=0.05)
    kl = [each.kl / LIMIT for each in simulate(plant, decide, [Load(16)] * 6_000)]
    return statistics.fmean(kl[:3_000]), statistics.fmean(kl[3_000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/guard.json"))
    options = parser.parse_args()
    rows = []
    print("| gain | bend | tokens that carry it | first 3,000 steps | then, median | most |")
    print("|---|---|---|---|---|---|")
    for gain, bend, rare in (
        (0.1, 2.0, 0.01),
        (1.0, 2.0, 0.01),
        (1.0, 4.0, 0.01),
        (1.0, 6.0, 0.01),
        (10.0, 2.0, 0.01),
        (0.1, 2.0, 0.001),
        (0.3, 2.0, 0.001),
        (1.0, 2.0, 0.001),
    ):
        found = [mean_kl(seed, gain, bend, rare) for seed in SEEDS]
        begin, then = ([each[i] for each in found] for i in (0, 1))
        row = {"gain": gain, "bend": bend, "rare": rare, "begin": begin, "then": then}
        rows.append(row)
        print(
            f"| {gain} | {bend:g} | {rare:.1%} | {statistics.median(begin):.2f} | "
            f"{statistics.median(then):.2f} | {max(then):.2f} |",
            flush=True,
        )
    record = {"command": command(), "limit": LIMIT, "rows": rows}
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
