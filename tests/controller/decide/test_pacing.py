"""The pace of prefill: bounds, the promise, monotone in the SLO, and p95 of gaps in closed loop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.plant.serving import Request, Served, serve
from benchmarks.plant.simulator import Plant, Setting
from lynx_controller import Batch, Bounds, Controller, Observation, Pace, Pacer, Slo
from lynx_controller.decide.pacing import FILL, MOST_STEPS, Rule, late_share, pace
from lynx_controller.pacer import slo_of_decoding

BOUNDS = Bounds(least=32, most=2048, page=16)


@dataclass(frozen=True)
class Linear:
    """fixed + token * tokens + pair * tokens * prefix, in ms."""

    fixed: float = 5.0
    token: float = 0.05
    pair: float = 0.0

    def ms(self, tokens: float, prefix: float) -> float:
        return self.fixed + tokens * (self.token + self.pair * prefix)

    def tokens_in(self, ms: float, prefix: float) -> float:
        return max(0.0, (ms - self.fixed) / (self.token + self.pair * prefix))


credits = st.floats(-300.0, 300.0)
costs = st.builds(Linear, st.floats(0.0, 100.0), st.floats(1e-4, 1.0), st.floats(0.0, 1e-4))
slos, decodes = st.floats(0.1, 1e4), st.floats(0.1, 1e3)
prefixes = st.integers(0, 100_000)


def test_the_engine_keeps_its_pace_while_late_gaps_are_left() -> None:
    assert pace(40.0, 20.0, Linear(), 0, 0.0, BOUNDS) == Pace(2048, 0, Rule.CREDIT)


def test_in_debt_a_chunk_that_fits_runs_after_every_decode_step() -> None:
    made = pace(40.0, 20.0, Linear(), 0, -1.0, BOUNDS)
    assert made == Pace(208, 1, Rule.FIT)  # 5 + 208 * 0.05 = 15.4 of 0.9 * 40 - 20 = 16 ms


def test_where_none_fits_decode_steps_pay_the_debt() -> None:
    assert pace(24.0, 20.0, Linear(), 0, -39.0, BOUNDS) == Pace(2048, 39, Rule.WAIT)
    assert pace(24.0, 20.0, Linear(), 0, -1e9, BOUNDS) == Pace(2048, MOST_STEPS, Rule.WAIT)


def test_a_longer_prefix_makes_the_chunk_smaller() -> None:
    cost = Linear(pair=1e-5)
    chunks = [pace(60.0, 20.0, cost, prefix, -1.0, BOUNDS).chunk_tokens for prefix in (0, 4000)]
    assert chunks[0] > chunks[1] >= BOUNDS.least


def test_a_ttft_goes_first_once_half_of_it_has_passed() -> None:
    assert pace(24.0, 20.0, Linear(), 0, -9.0, BOUNDS, waited=0.5).rule is Rule.WAIT
    assert pace(24.0, 20.0, Linear(), 0, -9.0, BOUNDS, waited=0.51) == Pace(2048, 0, Rule.TTFT)


@given(slos, decodes, costs, prefixes, credits, st.floats(0.0, 2.0))
def test_every_pace_is_in_bounds(
    slo_ms: float, decode_ms: float, cost: Linear, prefix: int, credit: float, waited: float
) -> None:
    made = pace(slo_ms, decode_ms, cost, prefix, credit, BOUNDS, waited)
    assert BOUNDS.least <= made.chunk_tokens <= BOUNDS.most
    assert made.chunk_tokens % BOUNDS.page == 0
    assert (made.interval == 0) == (made.rule in (Rule.TTFT, Rule.CREDIT))
    assert made.interval <= MOST_STEPS
    if made.rule is Rule.FIT:
        gap_ms = decode_ms + cost.ms(made.chunk_tokens, prefix)
        assert gap_ms <= FILL * slo_ms * (1 + 1e-9)


def at_once(made: Pace) -> int:
    """Tokens that may run in the next step."""
    return 0 if made.rule is Rule.WAIT else made.chunk_tokens


@given(slos, st.floats(1.0, 10.0), decodes, costs, prefixes, credits, st.floats(0.0, 100.0))
def test_prefill_never_slows_as_the_slo_or_the_credit_rises(
    slo_ms: float, more: float, decode_ms: float, cost: Linear, prefix: int, credit: float,
    saved: float,
) -> None:  # fmt: skip
    strict = pace(slo_ms, decode_ms, cost, prefix, credit, BOUNDS)
    loose = pace(slo_ms * more, decode_ms, cost, prefix, credit + saved, BOUNDS)
    assert at_once(loose) >= at_once(strict)
    assert loose.interval <= max(strict.interval, 1)


@given(st.lists(st.booleans(), max_size=3000), st.sampled_from([90.0, 95.0, 98.0]))
def test_late_gaps_stay_within_their_share(wants: list[bool], percentile: float) -> None:
    """Whatever prompts arrive, where no chunk fits: a late gap is made only with credit."""
    pacer, slo = Pacer(BOUNDS), Slo(itl_ms=10.0, percentile=percentile)
    for wanted in wants:
        if wanted and pacer.credit_steps >= 0.0:
            pacer.prefilled(100, 0, 50.0)
            pacer.decoded(slo, 8, 60.0)
        else:
            pacer.decoded(slo, 8, 9.0)
    assert pacer.late_gaps <= late_share(percentile) * len(wants) + 1
    assert late_share(percentile) < 1 - percentile / 100


def test_the_parts_of_the_percentile_add_up() -> None:
    assert late_share(95.0) == pytest.approx(0.04)
    assert late_share(95.0, decode_late=0.01) == pytest.approx(0.03)
    assert late_share(95.0, decode_late=0.5) == pytest.approx(0.025)
    assert slo_of_decoding(Slo(20.0, 95.0, 30.0, 500.0)) == Slo(20.0, 97.5, 30.0, 500.0)


@pytest.mark.parametrize("wrong", [(0, 8, 1), (8, 4, 1), (8, 16, 9)])
def test_impossible_bounds_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="1 <= page <= least <= most"):
        Bounds(*wrong)


@dataclass
class Loop:
    """Controller and pacer over the simulated engine."""

    slo: Slo
    pacer: Pacer | None
    shares: list[float] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        slo = slo_of_decoding(self.slo) if self.pacer else self.slo
        self.controller = Controller(slo, 8, 64, 4)

    def __call__(self, seen: Observation) -> Setting:
        if self.pacer is not None and seen.itl_ms is not None:
            self.pacer.decoded(self.slo, seen.batch.rows, seen.itl_ms)
            seen = replace(seen, itl_ms=seen.step_ms)
        decision = self.controller.step(seen)
        self.shares.append(decision.share)
        return decision.demand, decision.budget

    def plan(self, rows: int) -> Setting:
        decision = self.controller.plan(Batch.of(rows))
        return decision.demand, decision.budget

    def prefilled(self, tokens: int, ms: float) -> None:
        assert self.pacer is not None
        self.pacer.prefilled(tokens, 0, ms)

    def pace(self, rows: int) -> Pace:
        assert self.pacer is not None
        made = self.pacer.decide(self.controller, self.slo, Batch.of(max(rows, 1)), 0)
        self.rules.append(made.rule.value)
        return made


def bursty(seed: int) -> list[Request]:
    """Steady short prompts, and every two seconds a burst of three long ones."""
    rng = np.random.default_rng(seed)
    steady = [
        Request(float(at), 100, int(rng.integers(60, 160)))
        for at in np.cumsum(rng.exponential(250.0, 100))
    ]
    bursts = [
        Request(2e3 * burst + 50.0 * each, 4096, 60) for burst in range(1, 12) for each in range(3)
    ]
    return sorted([*steady, *bursts], key=lambda each: each.at_ms)


def p95(served: Served) -> float:
    """Of the gaps that streams saw, each stream's counted."""
    gaps = [each.gap_ms for each in served.samples for _ in range(each.load.rows)]
    return float(np.percentile(gaps, 95))


def run(slo_ms: float, paced: bool, seed: int) -> tuple[Served, Loop]:
    bounds = Bounds(32, 2048)
    loop = Loop(Slo(itl_ms=slo_ms), Pacer(bounds) if paced else None)
    plant = Plant(seed=seed, token_ms=0.05)
    served = serve(plant, loop, bursty(seed), 32, 2048, pacing=loop if paced else None)
    return served, loop


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("slo_ms", [14.0, 22.0])
def test_pacing_keeps_the_p95_that_bursts_of_prompts_break(slo_ms: float, seed: int) -> None:
    plain, unpaced = run(slo_ms, False, seed)
    paced, loop = run(slo_ms, True, seed)
    assert p95(plain) > 1.5 * slo_ms
    assert p95(paced) <= slo_ms
    assert np.percentile(paced.ttfts_ms, 95) <= 2.0 * np.percentile(plain.ttfts_ms, 95)
    assert np.mean(loop.shares) >= np.mean(unpaced.shares)  # experts do not pay for it


def test_an_slo_that_the_engine_keeps_by_itself_changes_nothing() -> None:
    plain, _ = run(60.0, False, 1)
    paced, loop = run(60.0, True, 1)
    assert set(loop.rules) == {"unpaced", "credit"}
    assert paced.ttfts_ms == plain.ttfts_ms
