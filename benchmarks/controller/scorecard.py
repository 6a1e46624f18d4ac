"""Every controller on every scenario over many seeds: ten figures, a table, a picture each.

    python -m benchmarks.controller.scorecard            # all: table, json, pictures, bars
    python -m benchmarks.controller.scorecard --tune     # PI's gains, on seeds kept for that
    python -m benchmarks.controller.scorecard --only burst --traces DIR   # a whole published hour

Writes benchmarks/results/cpu/controller.json, controller.md and controller/*.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.command import command
from benchmarks.controller import newcomer, pictures, report
from benchmarks.controller.figures import ABOUT, Run, judge, late_share, mass_of
from benchmarks.controller.policies import (
    FLOOR,
    MIN_MASS,
    BatchTable,
    Brownout,
    BrownoutServe,
    Lynx,
    Pi,
    Policy,
    lynx,
)
from benchmarks.controller.scenarios import NAMES, SERVED, Scenario, make
from benchmarks.plant.serving import serve
from benchmarks.plant.simulator import Plant, Setting, simulate
from loadtests.progress import track
from lynx_controller import Batch, ControllerConfig, Observation

SHOWN_STATICS = (FLOOR, 0.6, 0.7, 0.8, 0.9)
BETWEEN = (0.55, 0.65, 0.75, 0.85, 0.95, 1.0)  # tried for the best static share too
POLICIES = ("lynx", "feed_forward", "batch_table", "pi", "brownout", "brownoutserve", "full")
ABLATED = {"queue": ("itl_only",), "newcomer": ("alone",)}  # lynx without what it is about
TUNING = range(1000, 1006)
Decider = Policy | Lynx


def makers(scenario: Scenario) -> dict[str, Callable[[Plant], Decider]]:
    slo_ms = scenario.slo_at(0)
    known: dict[str, Any] = {
        "min_retained_mass": MIN_MASS,
        "prior_slope_ms": scenario.prior_slope_ms,
    }
    untrimmed = ControllerConfig(**known, tail_up=0.0, tail_down=0.0)
    slope_error = (scenario.prior_slope_ms or scenario.plant["slope_ms"]) / scenario.plant[
        "slope_ms"
    ]
    inherited = newcomer.cost(scenario) if scenario.name == "newcomer" else None
    return {
        "lynx": lambda plant: lynx(
            plant, slo_ms, ControllerConfig(**known), scenario.ttft_ms, inherited
        ),
        "alone": lambda plant: lynx(plant, slo_ms, ControllerConfig(**known)),
        "feed_forward": lambda plant: lynx(plant, slo_ms, untrimmed, scenario.ttft_ms),
        "itl_only": lambda plant: lynx(plant, slo_ms, ControllerConfig(**known)),
        "batch_table": lambda plant: BatchTable(
            slo_ms, plant.caps, plant=plant, slope_error=slope_error
        ),
        "pi": lambda plant: Pi(slo_ms, plant.caps),
        "brownout": lambda plant: Brownout(slo_ms, plant.caps),
        "brownoutserve": lambda plant: BrownoutServe(slo_ms, plant.caps),
        "full": lambda plant: Policy(slo_ms, plant.caps),
    }


def play(scenario: Scenario, make_policy: Callable[[Plant], Decider]) -> Run:
    plant = scenario.make_plant()
    policy = make_policy(plant)
    host_us: list[float] = []

    def decide(seen: Observation) -> Setting:
        slo_ms = scenario.slo_at(seen.step)
        if slo_ms != scenario.slo_at(seen.step - 1):
            policy.set_slo(slo_ms)
        begun = time.perf_counter()
        setting = policy(seen)
        host_us.append(1e6 * (time.perf_counter() - begun))
        return setting

    if scenario.requests:
        plan, slo_ms = policy.plan, scenario.slo_at(0)

        class Served:
            def __call__(self, seen: Observation) -> Setting:
                return decide(seen)

            def plan(self, rows: int) -> Setting | None:
                return plan(rows)

        is_mixed = scenario.name == "mixed"
        chunk = 512 if is_mixed else 2048
        served = serve(plant, Served(), scenario.requests, scenario.places, chunk, is_mixed)
        tpots = [each / slo_ms for each in served.tpots_ms]
        ratios = [each.gap_ms / slo_ms for each in served.samples]
        ttfts = [each / scenario.ttft_ms for each in served.ttfts_ms] if scenario.ttft_ms else []
        return Run(served.samples, ratios, tpots, host_us, ttfts)
    samples = simulate(plant, decide, scenario.loads)
    ratios = [each.gap_ms / scenario.slo_at(i) for i, each in enumerate(samples)]
    return Run(samples, ratios, [], host_us)


def statics(scenario: Scenario) -> dict[float, Run]:
    """Runs at fixed shares; twice as fine around those that are the best of a stretch."""
    slo_ms = scenario.slo_at(0)

    def fixed(share: float) -> Run:
        return play(scenario, lambda plant: Policy(slo_ms, plant.caps, share))

    if scenario.requests:
        return {share: fixed(share) for share in (*SHOWN_STATICS, 1.0)}
    runs = {share: fixed(share) for share in (*SHOWN_STATICS, *BETWEEN)}
    for best in {best_static(runs, span) for span in (scenario.busy, *scenario.plateaus)} - {1.0}:
        runs[best + 0.025] = fixed(best + 0.025)
    return runs


def best_static(runs: dict[float, Run], span: tuple[int, int]) -> float:
    """The highest share that violates at most 2 %, in hindsight; the floor where none does."""
    fits = [each for each, run in runs.items() if late_share(run.busy(span)) <= 0.02]
    return max(fits, default=FLOOR)


def run_scenario(scenario: Scenario, policies: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Figures by policy; `best_static` is one share for all of the judged stretch."""
    fixed = statics(scenario)
    best = [best_static(fixed, span) for span in scenario.plateaus]
    oracle = [
        mass_of(fixed[share].busy(span))
        for share, span in zip(best, scenario.plateaus, strict=True)
    ]
    runs = {f"static {share}": fixed[share] for share in SHOWN_STATICS}
    runs["best_static"] = fixed[best_static(fixed, scenario.busy)]
    made = makers(scenario)
    tried = (*policies, *ABLATED.get(scenario.name, ()))
    runs |= {name: play(scenario, made[name]) for name in tried}
    found = {name: judge(scenario, run, oracle) for name, run in runs.items()}
    for figures in found.values():
        figures["lead"] = figures["on_time"] - found["lynx"]["on_time"]
    if scenario.seed == 0:
        drawn = ("lynx", "pi", "brownoutserve", "best_static")
        pictures.draw(scenario, {name: runs[name] for name in drawn if name in runs})
    return found


def decision_us(steps: int = 2000) -> dict[str, float]:
    """Cost of one decision at 48 layers of 128 experts."""
    rng = np.random.default_rng(0)
    policy = lynx(Plant(num_layers=48, num_experts=128, top_k=8), 18.0, ControllerConfig())
    taken = []
    for step in range(steps):
        active = rng.integers(60, 70, 48).tolist()
        ms = 18.0 * (1 + 0.05 * rng.standard_normal())
        seen = Observation(step, Batch.of(16, size_class=16), ms, active)
        begun = time.perf_counter()
        policy(seen)
        taken.append(1e6 * (time.perf_counter() - begun))
    return {"p50": statistics.median(taken), "p99": float(np.percentile(taken, 99))}


def summarise(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    summary = {}
    for figure in ABOUT:
        values = [row[figure] for row in rows if not np.isnan(row[figure])]
        if values:
            p10, p50, p90 = np.percentile(values, [10, 50, 90])
            summary[figure] = {"p10": float(p10), "p50": float(p50), "p90": float(p90)}
    return summary


def pi_of(slo_ms: float, kp: float, ki: float) -> Callable[[Plant], Decider]:
    return lambda plant: Pi(slo_ms, plant.caps, kp=kp, ki=ki)


def tune() -> None:
    """PI's gains: mass delivered on time over four scenarios."""
    for kp in (0.0, 0.1, 0.3, 1.0, 3.0):
        for ki in (0.003, 0.01, 0.03, 0.1):
            found = []
            for name in ("load_step", "constant", "wander", "slope_drift"):
                for seed in TUNING:
                    scenario = make(name, seed)
                    run = play(scenario, pi_of(scenario.slo_at(0), kp, ki))
                    found.append(judge(scenario, run, [])["on_time"])
            print(f"kp {kp} ki {ki}: on time {statistics.fmean(found):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", choices=NAMES, action="append", help="keeps the others' results")
    parser.add_argument("--traces", type=Path, help="folder of the published Azure traces")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/controller.json"))
    options = parser.parse_args()
    if options.tune:
        tune()
        return
    pictures.FOLDER = options.out.with_suffix("")
    results = {}
    if options.only and options.out.exists():
        results = json.loads(options.out.read_text()).get("results", {})
    drawn = [
        (name, seed)
        for name in options.only or NAMES
        for seed in range(min(options.seeds, 5) if name in SERVED else options.seeds)
    ]
    rows: dict[str, list[dict[str, dict[str, float]]]] = {}
    for name, seed in track(drawn, "scenario", lambda each: f"{each[0]}, seed {each[1]}"):
        found = run_scenario(make(name, seed, options.traces), POLICIES)
        rows.setdefault(name, []).append(found)
    for name, runs in rows.items():
        results[name] = {policy: summarise([run[policy] for run in runs]) for policy in runs[0]}
    record = {
        "command": "python -m benchmarks.controller.scorecard",
        "this run": command(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "plant": "benchmarks.plant.simulator, 8 layers, 64 experts, top-4, lag 2, 5 % noise",
        "seeds": options.seeds,
        "figures": ABOUT,
        "scenarios": NAMES,
        "decision_us": decision_us(),
        "results": {name: results[name] for name in NAMES if name in results},
    }
    record["bars"] = report.bars(record["results"])
    text = report.report(record)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report.rounded(record), indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
