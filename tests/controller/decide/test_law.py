from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_controller import ControllerConfig, Reason
from lynx_controller.decide.law import Situation, decide
from lynx_controller.forecast import Forecast

CONFIG = ControllerConfig(margin=0.0)
# 6 ms + 0.01 ms * (200 + 800 u): 8 ms at share 0, 12 ms at 0.5, 16 ms at 1.
FORECAST = Forecast(6.0, 0.01, uncapped=1000.0, exact=200.0)
BASE = Situation(
    FORECAST, slo_ms=14.0, tail=0.0, held_tail=0.0, excess_ms=0.0, held=1.0, min_share=0.5
)


def test_a_cut_lands_on_the_target_in_one_step() -> None:
    move = decide(BASE, CONFIG)
    assert move.reason is Reason.FEED_FORWARD
    assert FORECAST.ms(move.share) == pytest.approx(14.0)


def test_full_quality_where_it_fits() -> None:
    move = decide(replace(BASE, slo_ms=17.0, held=0.5), CONFIG)
    assert (move.share, move.reason) == (1.0, Reason.FULL)


def test_full_quality_is_kept_and_won_back_with_hysteresis() -> None:
    assert decide(replace(BASE, slo_ms=15.9), CONFIG).share == 1.0
    assert decide(replace(BASE, slo_ms=15.9, held=0.97), CONFIG).share < 1.0


@pytest.mark.parametrize("ms", [14.0, 14.0 * 1.01, 14.0 * 0.96])
def test_the_dead_band_holds(ms: float) -> None:
    held = FORECAST.share_for(ms)
    move = decide(replace(BASE, held=held), CONFIG)
    assert (move.share, move.reason) == (held, Reason.HOLD)


def test_up_goes_a_share_of_the_way_and_down_all_of_it() -> None:
    wanted = FORECAST.share_for(14.0)
    up = decide(replace(BASE, held=0.5), CONFIG)
    assert up.share == pytest.approx(0.5 + CONFIG.rise * (wanted - 0.5))
    down = decide(replace(BASE, held=0.95), CONFIG)
    assert down.share == pytest.approx(wanted)


def test_infeasible_at_the_floor_is_saturated_and_leaves_at_once() -> None:
    stuck = decide(replace(BASE, slo_ms=9.0, held=0.5), CONFIG)
    assert (stuck.share, stuck.reason, stuck.saturated) == (0.5, Reason.SATURATED, True)
    free = decide(replace(BASE, slo_ms=14.0, held=stuck.share), CONFIG)
    assert free.share > 0.6
    assert not free.saturated


def test_a_disturbance_that_no_cut_wins_back_is_ignored() -> None:
    slowed = replace(FORECAST, base_ms=26.0)
    move = decide(replace(BASE, forecast=slowed, excess_ms=20.0), CONFIG)
    assert move.reason is Reason.OUTSIDE
    assert FORECAST.ms(move.share) == pytest.approx(14.0)


def test_a_disturbance_is_paid_where_the_floor_meets_the_slo_but_not_the_target() -> None:
    slowed = replace(FORECAST, base_ms=7.0)  # 13 ms at the floor
    move = decide(replace(BASE, forecast=slowed, excess_ms=1.0, tail=0.1), CONFIG)
    assert (move.share, move.reason) == (0.5, Reason.SATURATED)


def test_a_disturbance_that_a_cut_wins_back_is_paid() -> None:
    slowed = replace(FORECAST, base_ms=7.0)
    move = decide(replace(BASE, forecast=slowed, excess_ms=1.0), CONFIG)
    assert move.reason is Reason.FEED_FORWARD
    assert slowed.ms(move.share) == pytest.approx(14.0)


def test_a_cut_that_buys_no_time_is_not_made() -> None:
    flat = Forecast(15.0, 0.01, uncapped=101.0, exact=100.0)
    move = decide(replace(BASE, forecast=flat), CONFIG)
    assert (move.share, move.saturated) == (1.0, True)


def test_a_move_that_the_tail_made_is_called_a_trim() -> None:
    held = FORECAST.share_for(14.0)
    move = decide(replace(BASE, held=held, tail=0.05), CONFIG)
    assert move.reason is Reason.FEEDBACK
    assert move.share < held


situations = st.builds(
    Situation,
    forecast=st.builds(
        Forecast,
        base_ms=st.floats(0.0, 100.0),
        slope_ms=st.floats(1e-6, 10.0),
        uncapped=st.floats(100.0, 1e4),
        exact=st.floats(0.0, 100.0),
        min_active=st.floats(0.0, 1e4),
    ),
    slo_ms=st.floats(0.1, 1e4),
    tail=st.floats(-0.9, 20.0),
    held_tail=st.floats(-0.9, 20.0),
    excess_ms=st.just(0.0) | st.floats(0.0, 50.0),
    held=st.floats(0.0, 1.0),
    min_share=st.just(0.5),
)


@given(situations, st.floats(0.01, 1.0))
def test_the_share_is_always_in_range(now: Situation, min_share: float) -> None:
    move = decide(replace(now, min_share=min_share), CONFIG)
    assert min_share <= move.share <= 1.0


@given(situations, st.floats(1.0, 3.0))
def test_a_looser_slo_never_lowers_the_share(now: Situation, looser: float) -> None:
    # A disturbance that becomes payable is paid, so it is the one thing that is not monotone.
    now = replace(now, excess_ms=0.0)
    tight = decide(now, CONFIG)
    loose = decide(replace(now, slo_ms=looser * now.slo_ms), CONFIG)
    nothing_to_gain = tight.share == 1.0 and tight.reason is Reason.SATURATED
    assert loose.share >= tight.share - 1e-9 or nothing_to_gain
