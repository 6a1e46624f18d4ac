"""Plants, loads and SLOs of the scorecard; one seed makes one of each."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

from lynx_controller.simulator import Load, Plant

FLOOR = 0.5
P98 = 1.10  # 98th percentile of the plant's 5 % noise, over its mean


@dataclass(frozen=True)
class Scenario:
    """`busy` is the stretch that is judged; `event` is where what it is about begins."""

    name: str
    loads: list[Load]
    slo_ms: float
    busy: tuple[int, int]
    event: int
    plant: dict[str, float]
    seed: int
    prior_slope_ms: float | None = None
    slope_factor: float = 1.0  # from `event` on

    @property
    def load_falls(self) -> bool:
        """After `busy` the load falls to where full quality fits."""
        return self.name in ("load_step", "gain_error", "infeasible")

    def make_plant(self) -> Plant:
        return Plant(seed=self.seed, **self.plant)  # type: ignore[arg-type]


NAMES = {
    "load_step": "rows 4 -> 16 -> 4; full quality does not fit at 16",
    "gain_error": "the same, slope prior wrong by 0.33-3x",
    "slope_drift": "rows 16, every expert 1.5x dearer from step 200 on",
    "constant": "rows 16 for 1,000 steps",
    "wander": "rows walk between 6 and 24, a slot at a time and back",
    "infeasible": "rows 32 cannot meet the SLO at the floor, then rows 8 can at full quality",
    "slow_down": "rows 16, +2 SLOs between steps from 200 to 400",
    "slow_step": "the same time lost inside the step",
    "prefills": "rows 16, one gap in eight +2 SLOs",
    "payable": "rows 16, +30 % of what the experts can pay between steps from 200 on",
}


def make(name: str, seed: int) -> Scenario:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    settings = {
        "slope_ms": rng.uniform(0.015, 0.05),
        "base_ms": rng.uniform(4.0, 8.0),
        "row_ms": rng.uniform(0.02, 0.15),
        "bend": rng.uniform(1.3, 3.5),
        "concentration": rng.uniform(0.65, 0.95),
        "warmup": 8.0,
    }
    plant = Plant(**settings)

    def cost_ms(rows: int, demand: float) -> float:
        return plant.step_ms(rows, plant.num_layers * plant.active(rows, demand))

    full, least = cost_ms(16, 1.0), cost_ms(16, FLOOR)
    slo_ms = P98 * (least + rng.uniform(0.3, 0.7) * (full - least))
    loads = [Load(16)] * 1000
    busy, event, prior, factor = (100, 1000), 0, None, 1.0
    if name in ("load_step", "gain_error"):
        loads = [Load(4)] * 100 + [Load(16)] * 500 + [Load(4)] * 100
        busy, event = (100, 600), 100
    if name == "gain_error":
        prior = settings["slope_ms"] * math.exp(rng.uniform(math.log(0.33), math.log(3.0)))
    if name == "slope_drift":
        dear = full - plant.base_ms - 16 * plant.row_ms
        slo_ms = P98 * (full + 0.15 * dear)
        loads = [Load(16)] * 550
        busy, event, factor = (200, 550), 200, 1.5
    if name == "wander":
        steps = rng.choice([-1, 0, 1], size=700, p=[0.1, 0.8, 0.1])
        rows = [15]
        for step in steps:
            rows.append(int(min(max(rows[-1] + step, 6), 24)))
        loads = [Load(each) for each in rows[:700]]
        busy = (100, 700)
    if name == "infeasible":
        loads = [Load(8)] * 100 + [Load(32)] * 300 + [Load(8)] * 200
        slo_ms = max(P98 * cost_ms(8, 1.0) * 1.1, 0.97 * cost_ms(32, FLOOR))
        busy, event = (100, 400), 400
    if name in ("slow_down", "slow_step"):
        lost = [2.0 * slo_ms * (200 <= i < 400) for i in range(450)]
        loads = [Load(16, outside_ms=ms) for ms in lost]
        if name == "slow_step":
            loads = [Load(16, inside_ms=ms) for ms in lost]
        busy, event = (200, 400), 200
    if name == "prefills":
        loads = [Load(16, outside_ms=2.0 * slo_ms * (i % 8 == 0)) for i in range(450)]
        busy = (100, 450)
    if name == "payable":
        slo_ms = P98 * (least + 0.7 * (full - least))
        extra = 0.3 * (full - least)
        loads = [Load(16, outside_ms=extra * (i >= 200)) for i in range(550)]
        busy, event = (200, 550), 200
    return Scenario(name, loads, slo_ms, busy, event, settings, seed, prior, factor)
