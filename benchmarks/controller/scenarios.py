"""Scenarios of the scorecard: one seed makes one plant, load and SLO."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.controller import traces
from benchmarks.controller.policies import FLOOR
from benchmarks.plant.serving import Request
from benchmarks.plant.simulator import Load, Plant

P98 = 1.10  # 98th percentile of the plant's 5 % noise, over its mean
Span = tuple[int, int]

NAMES = {
    "load_step": "rows 4 -> 16 -> 4; full quality does not fit at 16",
    "gain_error": "the same, slope prior wrong by 0.3-3x",
    "ramp": "rows 4 -> 24 -> 4 in 300 steps each way",
    "burst": "Azure code, its busiest minute; prefill in steps of its own",
    "diurnal": "a day of Poisson arrivals in two minutes, prefilled elsewhere",
    "slo_changed": "rows 16; the SLO becomes tight at 300, loose at 600",
    "infeasible": "rows 32 cannot meet the SLO at the floor, then rows 8 can at full quality",
    "slope_drift": "rows 16, every expert 1.5x dearer from step 200 on",
    "slow_down": "rows 16, +2 SLOs between steps from 200 to 400",
    "slow_step": "the same time lost inside the step",
    "payable": "rows 16, +30 % of what the experts can pay between steps from 200 on",
    "neighbour": "rows 16, whole steps 1.2x slower a third of the time, in spells of 40",
    "mixed": "Azure conversation, one minute; chunks of prompts prefilled in decode steps",
    "queue": "16 places; for 20 s requests come faster than full quality serves them; TTFT 1 s",
    "prefills": "rows 16, one gap in eight +2 SLOs",
    "newcomer": "a replica's first 64 steps, rows 16 at once; six like it, +-10 %, have served",
    "constant": "rows 16 for 1,000 steps",
    "wander": "rows walk between 6 and 24, a batch-size class at a time and back",
}
SERVED = ("burst", "diurnal", "mixed", "queue")


@dataclass(frozen=True)
class Scenario:
    """`busy` is the stretch that is judged; `event` is where what it is about begins."""

    name: str
    seed: int
    plant: dict[str, float]
    slo_ms: list[float]  # per step; one entry: for all
    loads: list[Load] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)  # instead of loads
    busy: Span = (100, 1000)
    event: int = 0
    falls: int | None = None  # where the load falls to where full quality fits
    plateaus: tuple[Span, ...] = ()  # constant conditions, settled
    prior_slope_ms: float | None = None
    ttft_ms: float | None = None
    places: int = 64

    def make_plant(self) -> Plant:
        return Plant(seed=self.seed, **self.plant)  # type: ignore[arg-type]

    def slo_at(self, step: int) -> float:
        return self.slo_ms[min(step, len(self.slo_ms) - 1)]


def make(name: str, seed: int, whole: Path | None = None) -> Scenario:
    """`whole`: a folder with the published traces, instead of the minutes kept here."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    settings: dict[str, Any] = {
        "slope_ms": rng.uniform(0.015, 0.05),
        "base_ms": rng.uniform(4.0, 8.0),
        "row_ms": rng.uniform(0.02, 0.15),
        "bend": rng.uniform(1.3, 3.5),
        "concentration": rng.uniform(0.65, 0.95),
        "warmup": 8.0,
    }
    plant = Plant(**settings)

    def cost_ms(rows: int, share: float) -> float:
        return plant.step_ms(rows, plant.active_at(rows, share))

    def between(share: float, rows: int = 16, slower: float = 1.0) -> float:
        low, high = slower * cost_ms(rows, FLOOR), cost_ms(rows, 1.0)
        return P98 * (low + share * (high - low))

    share = rng.uniform(0.3, 0.7)
    slo_ms = between(share)
    made: dict[str, object] = {"loads": [Load(16)] * 1000}
    if name in ("load_step", "gain_error"):
        made["loads"] = [Load(4)] * 100 + [Load(16)] * 500 + [Load(4)] * 100
        made |= {"busy": (100, 600), "event": 100, "falls": 600, "plateaus": ((125, 600),)}
    if name == "gain_error":
        factor = math.exp(rng.uniform(math.log(0.3), math.log(3.0)))
        made["prior_slope_ms"] = settings["slope_ms"] * factor
    if name == "ramp":
        up = [4 + round(20 * i / 300) for i in range(300)]
        rows = [4] * 100 + up + [24] * 100 + up[::-1] + [4] * 100
        slo_ms = between(share, 24)
        made |= {"loads": [Load(each) for each in rows], "busy": (100, 800), "event": 100}
        made |= {"falls": 800}
    if name == "slo_changed":
        slos = [between(0.7)] * 300 + [between(0.25)] * 300 + [between(1.1)] * 300
        made |= {"loads": [Load(16)] * 900, "slo_ms": slos, "busy": (100, 900), "event": 300}
        made |= {"plateaus": ((100, 300), (325, 600), (625, 900)), "falls": 600}
    if name == "slope_drift":
        dear = cost_ms(16, 1.0) - plant.base_ms - 16 * plant.row_ms
        slo_ms = P98 * (cost_ms(16, 1.0) + 0.15 * dear)
        made["loads"] = [Load(16)] * 200 + [Load(16, expert_factor=1.5)] * 350
        made |= {"busy": (200, 550), "event": 200, "plateaus": ((225, 550),)}
    if name == "constant":
        made["plateaus"] = ((100, 1000),)
    if name == "newcomer":
        made |= {"loads": [Load(16)] * 160, "busy": (0, 64)}
    if name == "wander":
        walk = [15]
        for step in rng.choice([-1, 0, 1], size=700, p=[0.1, 0.8, 0.1]):
            walk.append(int(min(max(walk[-1] + step, 6), 24)))
        made |= {"loads": [Load(each) for each in walk[:700]], "busy": (100, 700)}
    if name == "infeasible":
        made["loads"] = [Load(8)] * 100 + [Load(32)] * 300 + [Load(8)] * 200
        slo_ms = max(P98 * cost_ms(8, 1.0) * 1.1, 0.97 * cost_ms(32, FLOOR))
        made |= {"busy": (100, 400), "event": 100, "falls": 400, "plateaus": ((125, 400),)}
    if name in ("slow_down", "slow_step"):
        lost = [2.0 * slo_ms * (200 <= i < 400) for i in range(450)]
        is_between = name == "slow_down"
        made["loads"] = [
            Load(16, outside_ms=ms) if is_between else Load(16, inside_ms=ms) for ms in lost
        ]
        made |= {"busy": (200, 400), "event": 200, "plateaus": ((225, 400),)}
    if name == "prefills":
        made["loads"] = [Load(16, outside_ms=2.0 * slo_ms * (i % 8 == 0)) for i in range(450)]
        made |= {"busy": (100, 450), "plateaus": ((100, 450),)}
    if name == "payable":
        slo_ms = between(0.7)
        extra = 0.3 * (cost_ms(16, 1.0) - cost_ms(16, FLOOR))
        made["loads"] = [Load(16, outside_ms=extra * (i >= 200)) for i in range(550)]
        made |= {"busy": (200, 550), "event": 200, "plateaus": ((225, 550),)}
    if name == "neighbour":
        slo_ms = between(share, slower=1.2)
        spells, is_loud = list[float](), False
        while len(spells) < 800:
            spells += [1.2 if is_loud else 1.0] * int(rng.geometric(1 / (40 if is_loud else 80)))
            is_loud = not is_loud
        made |= {"loads": [Load(16, slowdown=each) for each in spells[:800]], "busy": (100, 800)}
    if name in SERVED:
        settings["kv_ms"] = 0.02
        made |= {"loads": [], "busy": (50, 10**9)}
    if name == "diurnal":
        slo_ms = between(share, 24)
        made["requests"] = traces.diurnal(rng, 120_000.0, 16.0)
    if name == "queue":
        slo_ms = 1.5 * P98 * cost_ms(16, 1.0)
        full, floor = (1e3 * 16 / (100.0 * cost_ms(16, each)) for each in (1.0, FLOOR))
        peak = full + rng.uniform(0.2, 0.8) * (floor - full)
        rates = [(10_000.0, 0.7 * full), (20_000.0, peak), (20_000.0, 0.7 * full)]
        made |= {"requests": traces.stretches(rng, rates), "ttft_ms": 1_000.0, "places": 16}
    for each, trace in (("burst", "code"), ("mixed", "conv")):
        if name == each:
            found = traces.read_extract(trace)
            if whole is not None:
                found = traces.read_whole(whole / f"azure_2023_{trace}.csv")
            made["requests"] = found
    made.setdefault("slo_ms", [slo_ms])
    return Scenario(name=name, seed=seed, plant=settings, **made)  # type: ignore[arg-type]
