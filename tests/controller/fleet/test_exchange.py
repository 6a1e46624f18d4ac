"""Replicas teach a new one through a store; a lost or slow store delays no step."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from lynx_controller.fleet.exchange import Exchange, Identity
from lynx_controller.fleet.refit import refit
from lynx_controller.fleet.statistics import StepStatistics
from lynx_controller.fleet.store import SqliteStore, Store, StoreError
from lynx_controller.learn.cost import StepCost

COST = StepCost(base_ms=7.0, row_ms=0.1, slope_ms=0.04)


def seen(seed: int, steps: int, slower: float = 1.0) -> StepStatistics:
    loads = [(8.0 + (step * 7 + seed) % 50, 1.0 + step % 5) for step in range(steps)]
    return StepStatistics.of(
        [
            (active, rows, slower * (COST.base_ms + COST.row_ms * rows + COST.slope_ms * active))
            for active, rows in loads
        ]
    )


def wait_for(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def exchange(store: Store, name: str, block: str = "h100 tp1") -> Exchange:
    return Exchange(store, Identity("m", name, block), interval_s=0.01)


def cost_of(each: Exchange) -> StepCost:
    found: list[StepCost] = []
    wait_for(lambda: found or found.extend(filter(None, [each.cost()])) or found)
    return found[0]


def test_a_new_replica_gets_its_blocks_cost_before_its_first_step(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "fleet.db")
    for i in range(4):
        old = exchange(store, f"r{i}")
        old.offer(seen(i, 40, slower=1.0 + 0.02 * i))
        old.close()
        assert old.failures == 0
    assert refit(store, "m") == {"h100 tp1": 4}
    new = exchange(store, "new")
    found = cost_of(new)
    new.close()
    assert found.base_ms == pytest.approx(1.03 * COST.base_ms, rel=0.05)
    assert found.slope_ms == pytest.approx(1.03 * COST.slope_ms, rel=0.1)
    store.close()


def test_blocks_do_not_mix_and_a_cost_arrives_once(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "fleet.db")
    slow, quick = exchange(store, "slow", "cpu"), exchange(store, "quick")
    slow.offer(seen(1, 60, slower=2.0))
    quick.offer(seen(2, 60))
    wait_for(lambda: len(store.find("statistics/m/")) == 2)
    assert refit(store, "m") == {"cpu": 1, "h100 tp1": 1}
    assert cost_of(slow).base_ms == pytest.approx(2.0 * cost_of(quick).base_ms, rel=0.02)
    time.sleep(0.05)
    assert slow.cost() is None
    slow.close()
    quick.close()


def test_no_replica_has_shipped() -> None:
    assert refit(Broken(is_broken=False), "m") == {}


class Broken:
    """A store that fails, or hangs while `held` is clear."""

    def __init__(self, is_broken: bool = True) -> None:
        self.is_broken = is_broken
        self.held = threading.Event()
        self.held.set()
        self.kept: dict[str, str] = {}

    def put(self, key: str, value: str) -> None:
        self.held.wait()
        if self.is_broken:
            raise StoreError("gone")
        self.kept[key] = value

    def find(self, prefix: str) -> dict[str, str]:
        if self.is_broken:
            raise StoreError("gone")
        return {key: value for key, value in self.kept.items() if key.startswith(prefix)}

    def close(self) -> None: ...


def test_a_lost_store_is_counted_and_used_again_when_it_is_back() -> None:
    store = Broken()
    each = exchange(store, "a")
    each.offer(seen(1, 8))
    wait_for(lambda: each.failures > 2)
    assert each.cost() is None
    store.is_broken = False
    each.offer(seen(2, 8))
    wait_for(lambda: "statistics/m/a" in store.kept)
    each.close()


@pytest.mark.parametrize(
    "text",
    [
        '{"base": 1.0}',
        "[]",
        "nonsense",
        json.dumps({**asdict(COST), "slope_ms": float("nan")}),
        json.dumps({**asdict(COST), "base_ms": -1.0}),
    ],
)
def test_nonsense_in_the_store_is_counted(text: str) -> None:
    store = Broken(is_broken=False)
    store.kept["cost/m/h100 tp1"] = text
    each = exchange(store, "a")
    wait_for(lambda: each.failures)
    assert each.cost() is None
    each.close()


def test_a_slow_store_never_keeps_the_step_path_waiting() -> None:
    store = Broken(is_broken=False)
    store.held.clear()
    each = exchange(store, "a")
    statistics = seen(1, 2)
    begun = time.perf_counter()
    for _ in range(1000):
        each.offer(statistics)
        each.cost()
    assert time.perf_counter() - begun < 1.0
    assert each.dropped > 900
    store.held.set()
    each.close()


def test_names_never_mix_keys() -> None:
    identity = Identity.of("a/model", "/host/1/", "h100 tp1/2")
    assert identity.statistics_key == "statistics/a-model/host-1"
    assert identity.cost_key == "cost/a-model/h100 tp1-2"
