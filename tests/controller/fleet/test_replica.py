"""A replica that joins a fleet: its statistics, its first cost, and that nothing waits."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.plant.simulator import Load, Plant, simulate
from lynx_controller import Batch, Controller, Observation, Phase, Slo
from lynx_controller.fleet.exchange import Identity
from lynx_controller.fleet.refit import refit, refit_all, run
from lynx_controller.fleet.replica import OFFER_STEPS, Replica
from lynx_controller.fleet.store import SqliteStore, StoreError

LAYERS, EXPERTS, TOP_K = 8, 64, 4
PLANT = {"base_ms": 7.0, "row_ms": 0.1, "slope_ms": 0.04, "warmup": 8.0}


def join(store: object, name: str) -> Replica:
    identity = Identity.of("a/model", name, "h100 tp1")
    return Replica(store, identity, interval_s=0.01)  # type: ignore[arg-type]


def serve(replica: Replica, slo: Slo, seed: int, steps: int, rows: list[int]) -> Controller:
    controller = Controller(slo, LAYERS, EXPERTS, TOP_K)

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        decision = controller.step(seen)
        replica.note(seen, controller)
        return decision.demand, decision.budget

    loads = [Load(rows[i % len(rows)]) for i in range(steps)]
    simulate(Plant(seed=seed, **PLANT), decide, loads)  # type: ignore[arg-type]
    return controller


@pytest.fixture
def fleet(tmp_path: Path) -> SqliteStore:
    """Three replicas have served, and the job has run."""
    store = SqliteStore(tmp_path / "fleet.db")
    for seed in range(3):
        replica = join(store, f"r{seed}")
        serve(replica, Slo(itl_ms=16.0), seed, 300, [4, 4, 4, 16, 16, 16, 8])
        replica.close()
    assert refit(store, "a-model") == {"h100 tp1": 3}
    return store


def wait_for_cost(replica: Replica, controller: Controller) -> None:
    idle = Observation(0, Batch.of(0, Phase.IDLE), 0.0, ())
    deadline = time.monotonic() + 5.0
    while not replica.has_inherited:
        replica.note(idle, controller)
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_newcomer_decides_well_before_its_first_step(fleet: SqliteStore) -> None:
    plant = Plant(**PLANT)  # type: ignore[arg-type]
    full_ms = plant.step_ms(16, plant.active_at(16, 1.0))
    alone = Controller(Slo(itl_ms=0.95 * full_ms), LAYERS, EXPERTS, TOP_K)
    assert alone.plan(Batch.of(16)).share == 1.0
    replica, controller = join(fleet, "new"), Controller(alone.slo, LAYERS, EXPERTS, TOP_K)
    wait_for_cost(replica, controller)
    decision = controller.plan(Batch.of(16))
    assert decision.share < 1.0
    assert decision.predicted_ms == pytest.approx(0.95 * full_ms, rel=0.1)
    slope, row = (controller.state()[name] for name in ("slope_ms", "row_ms"))
    assert slope == pytest.approx(PLANT["slope_ms"], rel=0.25)
    assert 0.0 <= row < 0.3
    replica.close()


def test_what_is_unlike_a_usual_step_is_not_shipped(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "fleet.db")
    replica, controller = join(store, "a"), Controller(Slo(), LAYERS, EXPERTS, TOP_K)
    seen = Observation(1, Batch.of(4, size_class=4), 10.0, [20] * LAYERS)
    for i, change in enumerate(
        ({"step_ms": 80.0}, {}, {}, {"step_ms": 900.0}, {"batch": Batch.of(4, Phase.MIXED)}, {}, {})
    ):
        replica.note(replace(seen, step=i, **change), controller)  # type: ignore[arg-type]
    assert replica.state()["steps"] == 3
    replica.close()
    key = "statistics/a-model/a"
    assert json.loads(store.find(key)[key])["statistics"]["steps"] == 3.0


class Hanging:
    """A store that answers nothing until told."""

    def __init__(self) -> None:
        self.is_free = threading.Event()

    def put(self, key: str, value: str) -> None:
        self.is_free.wait()
        raise StoreError("gone")

    def find(self, prefix: str) -> dict[str, str]:
        self.is_free.wait()
        raise StoreError("gone")

    def close(self) -> None: ...


def test_a_store_that_hangs_costs_the_step_path_nothing() -> None:
    store = Hanging()
    replica, controller = join(store, "a"), Controller(Slo(), LAYERS, EXPERTS, TOP_K)
    taken = []
    for step in range(40 * OFFER_STEPS):
        seen = Observation(step, Batch.of(4, size_class=4), 10.0, [20] * LAYERS)
        begun = time.perf_counter()
        replica.note(seen, controller)
        taken.append(time.perf_counter() - begun)
    assert np.median(taken) < 2e-4
    assert replica.state()["dropped"] > 0
    store.is_free.set()
    replica.close()
    assert replica.state()["failures"] > 0


def test_the_job_fits_every_model_and_says_what_failed(
    fleet: SqliteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.put("statistics/other/x", '{"block": "b"}')
    assert refit_all(f"sqlite:{tmp_path / 'fleet.db'}")[0].startswith(
        "a-model: 3 replicas in 1 block"
    )
    run(f"sqlite:///{tmp_path / 'fleet.db'}")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["a-model", "other"]
    assert "FAILED" in lines[1]
    with pytest.raises(SystemExit, match="nowhere"):
        run("sqlite:/nowhere/at/all.db")


@pytest.mark.parametrize("wrong", [(-1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 0.0, 0.0)])
def test_an_impossible_cost_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="_ms must be in"):
        Controller(Slo(), LAYERS, EXPERTS, TOP_K).inherit(*wrong)
