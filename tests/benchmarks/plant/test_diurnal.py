import math
import time

import numpy as np
import pytest

from benchmarks.plant.diurnal import Second, run
from benchmarks.plant.serving import Request, serve
from benchmarks.plant.simulator import Plant, Setting
from lynx_controller import Batch, Controller, Observation, Slo

SLO_MS = 16.0


class Lynx:
    def __init__(self) -> None:
        self.controller = Controller(Slo(itl_ms=SLO_MS), 8, 64, 4)

    def __call__(self, seen: Observation) -> Setting:
        decision = self.controller.step(seen)
        return decision.demand, decision.budget

    def plan(self, rows: int) -> Setting:
        decision = self.controller.plan(Batch.of(rows))
        return decision.demand, decision.budget


def swing(second: int) -> float:
    return 8.0 - 5.0 * math.cos(2.0 * math.pi * second / 600.0)


def summary(seconds: list[Second]) -> tuple[float, float, float]:
    tokens = np.array([each.tokens for each in seconds])
    late, mass = (np.array([getattr(each, name) for each in seconds]) for name in ("late", "mass"))
    return tokens.sum(), (tokens * late).sum() / tokens.sum(), (tokens * mass).sum() / tokens.sum()


def test_tokens_are_conserved_and_time_is_saved() -> None:
    begun = time.process_time()
    seconds = run(Plant(seed=1), Lynx(), swing, 1_200, SLO_MS)
    assert time.process_time() - begun < 1.5
    tokens, _, _ = summary(seconds)
    assert tokens == pytest.approx(100.0 * sum(map(swing, range(1_200))), rel=0.05)


def test_it_says_about_what_the_engine_says() -> None:
    """The same swing, ten times as fast, request by request."""
    _, late, mass = summary(run(Plant(seed=1), Lynx(), swing, 1_200, SLO_MS))
    rng, at, requests = np.random.default_rng(1), 0.0, []
    while at < 60_000.0:
        at += float(rng.exponential(1e3 / swing(int(at / 100.0))))
        requests.append(Request(at, 0, int(rng.geometric(0.01))))
    samples = serve(Plant(seed=1), Lynx(), requests).samples
    rows = np.array([each.load.rows for each in samples])
    is_late = np.array([each.gap_ms > SLO_MS for each in samples])
    assert mass == pytest.approx((rows * [s.mass for s in samples]).sum() / rows.sum(), abs=0.03)
    engines = (rows * is_late).sum() / rows.sum()
    assert engines - 0.01 <= late <= engines + 0.05  # a controller that is slower: later, not less


def test_an_idle_second_is_no_step() -> None:
    seconds = run(Plant(), Lynx(), lambda _: 0.0, 10, SLO_MS)
    assert {(each.rows, each.tokens) for each in seconds} == {(0, 0.0)}


def test_more_than_fits_waits() -> None:
    seconds = run(Plant(), Lynx(), lambda _: 200.0, 5, SLO_MS, places=4)
    assert max(each.rows for each in seconds) == 4
    assert seconds[-1].waiting > 100
