"""Serving over hours, second by second: a day is simulated in seconds.

Coarser than `serving`. All steps of a second are alike. The number of streams is a Poisson draw
about arrivals * output * step time (Little); streams beyond the places wait. The controller sees
one step of each second and, as on a server, each new batch before it runs. Its lag, window and
learning therefore take seconds instead of steps: its answer to drift comes late, never early.
Late tokens are the share of the noise beyond the SLO, not draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from benchmarks.plant.serving import Policy
from benchmarks.plant.simulator import Load, Plant, Setting


@dataclass(frozen=True, slots=True)
class Second:
    """One second of serving."""

    rows: int
    waiting: float  # streams without a place, at its end
    tokens: float  # decoded
    late: float  # share of them
    share: float
    mass: float


def run(
    plant: Plant,
    policy: Policy,
    arrivals_per_s: Callable[[int], float],
    seconds: int,
    slo_ms: float,
    output: float = 100.0,
    places: int = 64,
    seed: int = 0,
) -> list[Second]:
    """`arrivals_per_s` by second; outputs are geometric with mean `output` tokens."""
    rng = np.random.default_rng([seed, 86_400])
    setting: Setting = (1.0, (plant.num_experts,) * plant.num_layers)
    served: list[Second] = []
    waiting, rows_before, usual_ms = 0.0, 0, plant.step_ms(1, plant.num_layers * plant.uncapped(1))
    for second in range(seconds):
        arrived = arrivals_per_s(second)
        streams = arrived * output * usual_ms / 1e3
        is_full = waiting > 0.0 or streams > places
        rows = places if is_full else min(int(rng.poisson(streams)), places)
        if not rows:
            served.append(Second(0, waiting, 0.0, 0.0, 1.0, 1.0))
            continue
        if rows != rows_before:
            setting = policy.plan(rows) or setting
        rows_before = rows
        load = Load(rows, kv_ktokens=0.5e-3 * rows * output)
        observation, sample = plant.run(load, setting)
        usual_ms = plant.step_ms(rows, sample.active) + plant.kv_ms * load.kv_ktokens
        late = 1.0 - NormalDist(usual_ms, plant.noise * usual_ms).cdf(slo_ms)
        steps = 1e3 / usual_ms
        served.append(Second(rows, waiting, rows * steps, late, sample.share, sample.mass))
        waiting = max(0.0, waiting + arrived - rows * steps / output) if is_full else 0.0
        told = replace(observation, demand=setting[0], budget_applied=tuple(setting[1]))
        setting = policy(told)
    return served
