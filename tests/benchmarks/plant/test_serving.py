"""The simulated engine: tokens are conserved, phases are what they should be, one seed one run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plant.serving import Request, Served, serve
from benchmarks.plant.simulator import Load, Plant, Setting
from lynx_controller import Observation, Phase


class Fixed:
    """One demand, and what was seen."""

    def __init__(self, demand: float = 1.0) -> None:
        self.demand, self.seen, self.planned = demand, list[Observation](), list[int]()

    def __call__(self, seen: Observation) -> Setting:
        self.seen.append(seen)
        return self.demand, (64,) * 8

    def plan(self, rows: int) -> Setting | None:
        self.planned.append(rows)
        return None


def poisson(seed: int, number: int, gap_ms: float, prompt: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(gap_ms, number))
    return [Request(float(each), prompt, int(rng.integers(1, 40))) for each in at]


def run(requests: list[Request], is_mixed: bool = False, **plant: float) -> tuple[Served, Fixed]:
    policy = Fixed()
    served = serve(Plant(seed=1, **plant), policy, requests, 16, 256, is_mixed)  # type: ignore[arg-type]
    return served, policy


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 99), st.floats(1.0, 500.0), st.sampled_from([0, 1, 255, 256, 900]), st.booleans()
)
def test_every_token_is_decoded_once(seed: int, gap_ms: float, prompt: int, is_mixed: bool) -> None:
    requests = poisson(seed, 30, gap_ms, prompt)
    served, _ = run(requests, is_mixed)
    assert sum(each.load.rows for each in served.samples) == sum(r.output - 1 for r in requests)
    assert len(served.ttfts_ms) == len(requests)
    assert len(served.tpots_ms) == sum(r.output > 1 for r in requests)
    assert max((each.load.rows for each in served.samples), default=0) <= 16
    assert min(served.ttfts_ms) >= 0.0


def test_prefill_of_its_own_is_lost_between_steps() -> None:
    requests = [Request(0.0, 0, 200), Request(300.0, 1024, 5)]
    served, policy = run(requests)
    lost = [each.load.outside_ms for each in served.samples if each.load.outside_ms]
    assert len(lost) == 1  # four chunks of 256, one after the other
    assert {each.batch.phase for each in policy.seen} == {Phase.DECODE}
    assert policy.planned == [1, 2, 1]


def test_chunks_can_ride_with_the_decode_rows() -> None:
    requests = [Request(0.0, 0, 200), Request(300.0, 1024, 5)]
    served, policy = run(requests, is_mixed=True)
    assert [each.batch.phase for each in policy.seen].count(Phase.MIXED) == 4
    assert all(each.load.outside_ms == 0.0 for each in served.samples)
    mixed = [each for each in served.samples if each.load.prefill_tokens]
    assert all(each.mass == pytest.approx(1.0, abs=0.05) for each in mixed)


def test_context_grows_by_a_token_per_row_and_costs_time() -> None:
    served, policy = run([Request(0.0, 500, 50)], noise=0.0, jitter=0.0, kv_ms=2.0)
    assert [each.kv_tokens for each in policy.seen] == list(range(501, 550))
    rise = served.samples[-1].gap_ms - served.samples[0].gap_ms
    assert rise == pytest.approx(2.0 * 48e-3)
    assert served.tpots_ms[0] == pytest.approx(
        np.mean([each.gap_ms for each in served.samples]), rel=1e-6
    )


def test_idle_time_is_skipped_and_is_nobodys_gap() -> None:
    served, _ = run([Request(0.0, 0, 5), Request(1e7, 0, 5)])
    assert len(served.samples) == 8
    assert max(each.gap_ms for each in served.samples) < 100.0
    assert served.clock_ms > 1e7


def test_one_seed_one_run() -> None:
    requests = poisson(3, 50, 20.0, 100)
    first, second = run(requests)[0], run(requests)[0]
    assert first == second


def test_gate_mass_rises_with_demand_to_one() -> None:
    plant = Plant(noise=0.0, jitter=0.0)
    masses = [plant.run(Load(16), (d, (64,) * 8))[1].mass for d in (0.2, 0.5, 0.8, 0.95, 1.0)]
    assert masses == sorted(masses)
    assert masses[-1] == pytest.approx(1.0, abs=0.01)
    capped = plant.run(Load(16), (1.0, (12,) * 8))[1].mass
    assert capped < 0.8
