"""A TTFT that counts queueing: faster steps where, and only where, they free places sooner."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.plant.serving import Request, Served, serve
from benchmarks.plant.simulator import Plant, Setting
from lynx_controller import Batch, Controller, Decision, Observation, Phase, Reason, Slo
from lynx_controller.decide.queue_pressure import PATIENCE, QueuePressure

TTFT_MS = 1_000.0
PLACES = 16


def requests_per_s(plant: Plant, share: float) -> float:
    """The rate that all places serve, at 60 tokens a request."""
    return 1e3 * PLACES / (60.0 * plant.step_ms(PLACES, plant.active_at(PLACES, share)))


class Loop:
    def __init__(self, slo: Slo) -> None:
        self.controller = Controller(slo, 8, 64, 4)
        self.decisions: list[Decision] = []

    def __call__(self, seen: Observation) -> Setting:
        self.decisions.append(self.controller.step(seen))
        return self.decisions[-1].demand, self.decisions[-1].budget

    def plan(self, rows: int) -> Setting:
        decision = self.controller.plan(Batch.of(rows))
        return decision.demand, decision.budget


def run(slo: Slo, per_s: float, length_ms: float = 20_000.0) -> tuple[Served, Loop]:
    rng = np.random.default_rng(5)
    at = np.cumsum(rng.exponential(1e3 / per_s, int(per_s * length_ms / 1e3)))
    loop = Loop(slo)
    requests = [Request(float(each), 0, int(rng.integers(30, 91))) for each in at]
    requests.append(Request(float(at[-1]) + 30_000.0, 0, 300))  # alone, after all others
    return serve(Plant(seed=5, slope_ms=0.04), loop, requests, PLACES), loop


def load(share: float) -> float:
    """Requests per s, this share of the way from full quality's to the floor's capacity."""
    plant = Plant(slope_ms=0.04)
    full, floor = requests_per_s(plant, 1.0), requests_per_s(plant, 0.5)
    return full + share * (floor - full)


def test_a_queue_that_full_quality_cannot_serve_is_held() -> None:
    promised, loop = run(Slo(ttft_ms=TTFT_MS), load(0.5))
    alone, _ = run(Slo(itl_ms=100.0), load(0.5))
    assert np.mean(np.array(promised.ttfts_ms) > TTFT_MS) <= 0.05
    assert np.mean(np.array(alone.ttfts_ms) > TTFT_MS) >= 0.3
    assert Reason.QUEUE in {each.reason for each in loop.decisions}


def test_no_quality_is_given_up_where_full_quality_serves_all() -> None:
    served, loop = run(Slo(ttft_ms=TTFT_MS), 0.8 * load(0.0))
    assert np.mean(np.array(served.ttfts_ms) > TTFT_MS) == 0.0
    assert np.mean([each.share for each in loop.decisions]) > 0.99


def test_beyond_what_the_floor_serves_it_saturates_and_comes_back() -> None:
    _, loop = run(Slo(ttft_ms=TTFT_MS), load(2.0), 10_000.0)
    reasons = [each.reason for each in loop.decisions]
    assert reasons.count(Reason.SATURATED) > 0.4 * len(reasons)
    assert loop.decisions[-1].share == 1.0


def test_the_gaps_rule_where_they_ask_for_more() -> None:
    strict, loop = run(Slo(itl_ms=10.0, ttft_ms=TTFT_MS), load(0.3), 5_000.0)
    assert Reason.QUEUE not in {each.reason for each in loop.decisions}
    assert max(strict.ttfts_ms) < TTFT_MS


def test_the_limit_is_full_speed_until_its_share_has_passed() -> None:
    queue = QueuePressure()
    assert queue.limit_ms(1_000.0, 12.0) == math.inf
    queue.watch(1_000.0 * PATIENCE)
    assert queue.limit_ms(1_000.0, 12.0) == math.inf
    queue.watch(2_000.0 * PATIENCE)
    assert queue.limit_ms(1_000.0, 12.0) == pytest.approx(6.0)
    assert queue.limit_ms(None, 12.0) == math.inf
    queue.watch(0.0)
    assert queue.wait_ms == pytest.approx(1_960.0 * PATIENCE)


@pytest.mark.parametrize("wait", [math.nan, math.inf, -1.0, None])
def test_an_impossible_wait_is_not_believed(wait: float | None) -> None:
    controller = Controller(Slo(ttft_ms=TTFT_MS), 8, 64, 4)
    for step in range(20):
        seen = Observation(step, Batch.of(16, size_class=16), 14.0, [35] * 8, queue_ms=wait)
        decision = controller.step(seen)
    assert (decision.share, decision.reason) == (1.0, Reason.FULL)
    late = controller.step(replace(seen, step=20, queue_ms=2_000.0))
    assert late.share < 1.0


def test_a_wait_seen_in_a_mixed_step_is_prefills_not_the_places() -> None:
    controller = Controller(Slo(ttft_ms=TTFT_MS), 8, 64, 4)
    for step in range(20):
        controller.step(Observation(step, Batch.of(16, size_class=16), 14.0, [35] * 8))
    mixed = Observation(20, Batch.of(16, Phase.MIXED), 40.0, [60] * 8, queue_ms=5_000.0)
    assert controller.step(mixed).share == 1.0


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan])
def test_an_impossible_ttft_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="ttft_ms"):
        Slo(ttft_ms=wrong)
