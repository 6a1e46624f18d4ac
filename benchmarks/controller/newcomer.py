"""The step cost that a new replica inherits from a fleet of six after a refit.

Each term of their plants differs from the newcomer's by 10 % (standard deviation of its log). The
cost travels through a store, as on servers.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.controller.scenarios import Scenario
from benchmarks.plant.simulator import Load, Plant, Setting, simulate
from lynx_controller import Controller, Observation, Slo
from lynx_controller.fleet.exchange import Identity
from lynx_controller.fleet.refit import refit
from lynx_controller.fleet.replica import Replica
from lynx_controller.fleet.store import SqliteStore

REPLICAS = 6
SPREAD = 0.1


def cost(scenario: Scenario) -> tuple[float, float, float]:
    """base, row and slope in ms, as `Controller.inherit` takes them."""
    rng = np.random.default_rng([scenario.seed, 7])
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "fleet.db")
        for number in range(REPLICAS):
            plant = replace(scenario.make_plant(), seed=1000 + REPLICAS * scenario.seed + number)
            for term in ("base_ms", "row_ms", "slope_ms"):
                away = float(np.exp(SPREAD * rng.standard_normal()))
                setattr(plant, term, away * getattr(plant, term))
            replica = Replica(store, Identity("m", str(number), "one"))
            serve(plant, replica, scenario.slo_at(0), rng)
            replica.close()
        refit(store, "m")
        record = json.loads(store.find("cost/m/one")["cost/m/one"])
        store.close()
    return record["base_ms"], record["row_ms"], record["slope_ms"]


def serve(plant: Plant, replica: Replica, slo_ms: float, rng: np.random.Generator) -> None:
    controller = Controller(Slo(itl_ms=slo_ms), plant.num_layers, plant.num_experts, plant.top_k)

    def decide(seen: Observation) -> Setting:
        decision = controller.step(seen)
        replica.note(seen, controller)
        return decision.demand, decision.budget

    rows = rng.integers(1, 33, 8)
    simulate(plant, decide, [Load(int(each)) for each in rows for _ in range(40)])
