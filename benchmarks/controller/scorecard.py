"""Every controller on every scenario, many seeds: one table, and results/cpu/controller.json.

python benchmarks/controller/scorecard.py
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from policies import BrownoutServe, Lynx, Static, lynx
from scenarios import FLOOR, NAMES, Scenario, make

from lynx_controller import ControllerConfig
from lynx_controller.metrics import (
    overshoot,
    recovery_steps,
    reversals_per_1000,
    settling_steps,
    violation_rate,
)
from lynx_controller.simulator import Sample, simulate

Row = dict[str, float]
POLICIES = ("lynx", "feed_forward", "brownoutserve", "best_static", "full")
COLUMNS = ("violations", "demand", "active", "settling", "overshoot", "reversals", "recovery")


def play(scenario: Scenario, make_policy: Callable[..., object]) -> tuple[list[Sample], object]:
    plant = scenario.make_plant()
    policy = make_policy(plant)
    before = plant.slope_ms

    def decide(seen):  # type: ignore[no-untyped-def]
        if seen.step == scenario.event:
            plant.slope_ms = before * scenario.slope_factor
        return policy(seen)

    return simulate(plant, decide, scenario.loads), policy


def judge(scenario: Scenario, samples: list[Sample]) -> Row:
    start, end = scenario.busy
    busy = samples[start:end]
    gaps = [each.gap_ms for each in busy]
    demands = [each.demand for each in samples]
    steady = demands[start + 50 : end]
    after = demands[end:] if scenario.load_falls else []
    return {
        "violations": 100.0 * violation_rate(gaps, scenario.slo_ms),
        "demand": statistics.fmean(each.demand for each in busy),
        "active": statistics.fmean(each.active / each.natural for each in busy),
        "settling": float(settling_steps(gaps, scenario.slo_ms)),
        "overshoot": 100.0 * overshoot(gaps, scenario.slo_ms),
        "reversals": reversals_per_1000(steady),
        "recovery": float(recovery_steps(after)) if after else float("nan"),
    }


def best_static(scenario: Scenario) -> list[Sample]:
    """The highest single demand that violates at most 2 % of the busy stretch, in hindsight."""
    low, high = FLOOR, 1.0
    start, end = scenario.busy
    budget = (64,) * 8
    best, _ = play(scenario, lambda plant: Static(low, budget))
    if violation_rate([each.gap_ms for each in best[start:end]], scenario.slo_ms) > 0.02:
        return best
    for _ in range(4):
        middle = (low + high) / 2.0
        samples, _ = play(scenario, lambda plant, demand=middle: Static(demand, budget))
        gaps = [each.gap_ms for each in samples[start:end]]
        if violation_rate(gaps, scenario.slo_ms) <= 0.02:
            low, best = middle, samples
        else:
            high = middle
    return best


def run(name: str, scenario: Scenario) -> list[Sample]:
    prior = {"min_demand": FLOOR, "prior_slope_ms": scenario.prior_slope_ms}
    budget = (64,) * 8
    if name == "best_static":
        return best_static(scenario)
    makers: dict[str, Callable[..., object]] = {
        "lynx": lambda plant: lynx(plant, scenario.slo_ms, ControllerConfig(**prior)),
        "feed_forward": lambda plant: lynx(
            plant, scenario.slo_ms, ControllerConfig(**prior, tail_up=0.0, tail_down=0.0)
        ),
        "brownoutserve": lambda plant: BrownoutServe(scenario.slo_ms, budget, FLOOR),
        "full": lambda plant: Static(1.0, budget),
    }
    return play(scenario, makers[name])[0]


def decision_us(steps: int = 2000) -> Row:
    """Cost of one decision at 48 layers of 128 experts."""
    from lynx_controller import Observation, Phase
    from lynx_controller.simulator import Plant

    rng = np.random.default_rng(0)
    policy: Lynx = lynx(Plant(num_layers=48, num_experts=128, top_k=8), 18.0, ControllerConfig())
    taken = []
    for step in range(steps):
        active = rng.integers(60, 70, 48).tolist()
        seen = Observation(
            step, Phase.DECODE, 16, 16, 18.0 * (1 + 0.05 * rng.standard_normal()), active
        )
        begun = time.perf_counter()
        policy(seen)
        taken.append(1e6 * (time.perf_counter() - begun))
    return {"p50": statistics.median(taken), "p99": float(np.percentile(taken, 99))}


def summarise(rows: list[Row]) -> dict[str, Row]:
    summary = {}
    for column in COLUMNS:
        values = [row[column] for row in rows]
        if not any(np.isnan(values)):
            summary[column] = {
                "p50": float(np.median(values)),
                "p90": float(np.percentile(values, 90)),
            }
    return summary


def table(results: dict[str, dict[str, dict[str, Row]]]) -> str:
    lines = [
        "| scenario | controller | violations % | demand | active/natural | settling steps "
        "| overshoot % | reversals/1000 | recovery steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scenario, by_policy in results.items():
        for policy, summary in by_policy.items():
            cells = []
            for column in COLUMNS:
                cell = summary.get(column)
                digits = 2 if column in ("demand", "active") else 1
                cells.append(
                    "" if cell is None else f"{cell['p50']:.{digits}f} ({cell['p90']:.{digits}f})"
                )
            lines.append(f"| {scenario} | {policy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", choices=NAMES, action="append")
    parser.add_argument("--policies", choices=POLICIES, action="append")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/controller.json"))
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, Row]]] = {}
    for name in options.only or NAMES:
        scenarios = [make(name, seed) for seed in range(options.seeds)]
        results[name] = {
            policy: summarise([judge(each, run(policy, each)) for each in scenarios])
            for policy in options.policies or POLICIES
        }
    cost = decision_us()
    print("median (90th percentile) over", options.seeds, "seeds; simulated plant\n")
    print(table(results))
    print(f"\none decision, 48 layers: p50 {cost['p50']:.0f} us, p99 {cost['p99']:.0f} us")
    record = {
        "command": "python " + " ".join(sys.argv),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "plant": "lynx_controller.simulator, 8 layers, 64 experts, top-4, lag 2, 5 % noise",
        "seeds": options.seeds,
        "scenarios": NAMES,
        "decision_us": cost,
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
