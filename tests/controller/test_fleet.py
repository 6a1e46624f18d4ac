"""Two replicas teach a third through a store; a lost or slow store touches nobody."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cellscope.models.features import Features
from lynx_controller.fleet.exchange import Exchange, Replica, refit
from lynx_controller.fleet.site import Sites, Statistics
from lynx_controller.fleet.store import SqliteStore, Store, StoreError

LAYERS = ("0", "1", "2")
LAW = np.array([[20.0, 22.0, 25.0], [1.0, 1.2, 0.9], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1]])  # [d, S]


def loads(rng: np.random.Generator, n: int) -> np.ndarray:  # type: ignore[type-arg]
    """z [n, d]"""
    rows = rng.integers(1, 64, n)
    active = rng.uniform(10, 60, n)
    return Features(5e6).matrix(rows, rows, active, rows * 500)


PROBE = loads(np.random.default_rng(9), 8)


def seen(seed: int, n: int, slower: float = 1.0) -> Statistics:
    rng = np.random.default_rng(seed)
    z = loads(rng, n)
    us = slower * (z @ LAW) * (1.0 + 0.03 * rng.standard_normal((n, len(LAYERS))))
    return Statistics.of_rows(np.repeat(z[None], len(LAYERS), axis=0), us.T)


def wait_for(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def exchange(store: Store, name: str, **options: float) -> Exchange:
    replica = Replica("m", name, "h100 tp1", LAYERS, tuple(map(tuple, PROBE.tolist())))
    return Exchange(store, replica, **{"interval_s": 0.01, **options})


def test_a_new_replica_serves_with_its_blocks_law_from_its_first_step(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "fleet.db")
    for i in range(4):
        old = exchange(store, f"r{i}")
        old.offer(seen(i, 40, slower=1.0 + 0.02 * i))
        old.close()
        assert old.failures == 0
    fit = refit(store, "m")
    assert fit is not None
    new = exchange(store, "new")
    laws: list[Sites] = []
    wait_for(lambda: laws or laws.extend(filter(None, [new.law()])))
    new.close()
    us, _ = laws[0].predict(np.repeat(PROBE[0][:, None], len(LAYERS), axis=1))
    assert us == pytest.approx(1.03 * PROBE[0] @ LAW, rel=0.1)
    store.close()


def test_a_replica_gets_its_own_law_back_once_per_refit(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "fleet.db")
    slow, quick = exchange(store, "slow"), exchange(store, "quick")
    slow.offer(seen(1, 60, slower=2.0))
    quick.offer(seen(2, 60))
    wait_for(lambda: len(store.find("share/m/")) == 2)
    refit(store, "m")
    found: dict[str, Sites] = {}

    def both() -> bool:
        for name, each in (("slow", slow), ("quick", quick)):
            law = each.law()
            if law is not None:
                found[name] = law
        return len(found) == 2

    wait_for(both)
    z = np.repeat(PROBE[0][:, None], len(LAYERS), axis=1)
    ratio = found["slow"].predict(z)[0] / found["quick"].predict(z)[0]
    assert ratio == pytest.approx(2.0, rel=0.15)
    time.sleep(0.05)
    assert slow.law() is None
    slow.close()
    quick.close()


def test_nobody_has_shipped() -> None:
    assert refit(Broken(is_broken=False), "m") is None


class Broken:
    """A store that fails, or hangs until told."""

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
    assert each.law() is None
    store.is_broken = False
    each.offer(seen(2, 8))
    wait_for(lambda: "share/m/a" in store.kept)
    each.close()


def test_nonsense_in_the_store_is_counted() -> None:
    store = Broken(is_broken=False)
    store.kept["law/m/a"] = '{"sites": ["other"], "law": 1}'
    each = exchange(store, "a")
    wait_for(lambda: each.failures)
    assert each.law() is None
    each.close()


def test_a_slow_store_never_keeps_the_step_path_waiting() -> None:
    store = Broken(is_broken=False)
    store.held.clear()
    each = exchange(store, "a")
    statistics = seen(1, 2)
    begun = time.perf_counter()
    for _ in range(1000):
        each.offer(statistics)
        each.law()
    assert time.perf_counter() - begun < 1.0
    assert each.dropped > 900
    store.held.set()
    each.close()


@pytest.mark.parametrize("wrong", [("m", "a/b"), ("m/n", "a"), ("m", "=a")])
def test_names_that_would_mix_keys_are_refused(wrong: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="no"):
        Replica(*wrong, "h100", LAYERS, ())
