import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_controller import Phase
from lynx_controller.forecast import Forecast
from lynx_controller.learn.uncapped import MEMORY, SPREAD, UncappedActive, above

KEY = (Phase.DECODE, 16)
LAYERS, EXPERTS = 8, 64
FULL = np.full(LAYERS, float(EXPERTS))


def uncapped() -> UncappedActive:
    return UncappedActive(LAYERS, EXPERTS, top_k=4, prior=0.85)


def test_uniform_routing_is_the_yardstick() -> None:
    assert uncapped().uniform(1) == pytest.approx(LAYERS * 4)
    assert uncapped().uniform(10_000) == pytest.approx(LAYERS * EXPERTS)


def test_the_first_uncut_step_is_believed_and_layers_follow() -> None:
    model, active = uncapped(), np.array([20.0, 30.0] * 4)
    model.learn(KEY, 16, active, FULL)
    assert model.total(KEY, 16) == pytest.approx(200.0)
    for _ in range(200):
        model.learn(KEY, 16, active, FULL)
    assert model.per_layer(200.0) == pytest.approx(active, rel=1e-3)


def test_layers_at_a_cap_that_bites_tell_nothing() -> None:
    model = uncapped()
    model.learn(KEY, 16, np.full(LAYERS, 30.0), FULL)
    for _ in range(100):
        model.learn(KEY, 16, np.full(LAYERS, 20.0), np.full(LAYERS, 20.0))
    assert model.total(KEY, 16) == pytest.approx(240.0, rel=1e-4)


def test_a_stale_low_estimate_recovers_under_caps_close_to_it() -> None:
    model = uncapped()
    model.learn(KEY, 16, np.full(LAYERS, 20.0), FULL)
    for _ in range(10 * MEMORY):
        model.learn(KEY, 16, np.full(LAYERS, 24.0), np.full(LAYERS, 24.0))
    assert 25.0 < model.total(KEY, 16) / LAYERS < 31.0  # above 24; how far is not told


@pytest.mark.parametrize("share", [0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0])
def test_layers_that_happen_to_need_less_than_their_cap_do_not_mislead(share: float) -> None:
    rng, model = np.random.default_rng(0), uncapped()
    for step in range(2_000):
        wanted = 30.0 * (1.0 + 0.06 * rng.standard_normal(LAYERS))
        caps = FULL if step < 20 else np.full(LAYERS, 30.0 * share)
        model.learn(KEY, 16, np.minimum(wanted, caps), caps)
    assert model.total(KEY, 16) == pytest.approx(240.0, rel=0.02)


@pytest.mark.parametrize(("score", "mills"), [(-3.0, 0.0044), (-1.0, 0.2876), (0.0, 0.7979)])
def test_what_lies_above_a_cap_is_expected_by_the_normal_law(score: float, mills: float) -> None:
    mean = np.full(LAYERS, 30.0)
    found = above(mean, mean * (1.0 + SPREAD * score))
    assert (found / mean - 1.0) / SPREAD == pytest.approx(mills, abs=0.01)


def test_what_a_demand_cut_is_only_a_lower_bound() -> None:
    model = uncapped()
    model.learn(KEY, 16, np.full(LAYERS, 30.0), FULL)
    model.learn(KEY, 16, np.full(LAYERS, 15.0), None)
    assert model.total(KEY, 16) == pytest.approx(240.0)
    model.learn(KEY, 16, np.full(LAYERS, 36.0), None)
    assert model.total(KEY, 16) > 240.0


def test_floors_that_hold_more_than_the_cap_are_seen_and_forgotten() -> None:
    model, caps = uncapped(), np.full(LAYERS, 8.0)
    model.learn(KEY, 16, np.full(LAYERS, 30.0), FULL)
    assert model.min_active(KEY, 16) == 4 * LAYERS
    for _ in range(200):
        model.learn(KEY, 16, np.full(LAYERS, 12.0), caps)
    assert model.min_active(KEY, 16) == pytest.approx(12.0 * LAYERS, rel=0.01)
    for _ in range(200):
        model.learn(KEY, 16, caps, caps)
    assert model.min_active(KEY, 16) == pytest.approx(8.0 * LAYERS, rel=0.01)


def test_a_new_size_class_starts_from_its_neighbour() -> None:
    model = uncapped()
    model.learn(KEY, 16, np.full(LAYERS, 20.0), FULL)
    ratio = model.total(KEY, 16) / model.uniform(16)
    assert model.total((Phase.DECODE, 32), 30) == pytest.approx(ratio * model.uniform(30))


layers = st.lists(st.floats(0.0, 64.0), min_size=LAYERS, max_size=LAYERS).map(np.array)
caps = st.none() | st.lists(st.integers(1, 64), min_size=LAYERS, max_size=LAYERS).map(np.array)


@given(st.lists(st.tuples(layers, caps), max_size=40))
def test_whatever_is_seen_the_number_is_positive_and_in_range(
    seen: list[tuple[np.ndarray, np.ndarray | None]],
) -> None:
    model = uncapped()
    for active, cap in seen:
        model.learn(KEY, 16, active, None if cap is None else cap.astype(float))
    assert 0.0 < model.total(KEY, 16) <= 2.0 * model.uniform(16)
    assert model.layer_share.min() > 0.0
    assert model.layer_share.sum() == pytest.approx(1.0)
    assert model.min_active(KEY, 16) <= LAYERS * EXPERTS


forecasts = st.builds(
    Forecast,
    base_ms=st.floats(0.0, 50.0),
    slope_ms=st.floats(1e-3, 1.0),
    uncapped=st.floats(100.0, 500.0),
    exact=st.floats(0.0, 100.0),
    min_active=st.floats(0.0, 600.0),
    max_active=st.floats(50.0, 600.0),
)


@given(forecasts, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_forecast_rises_with_the_share_and_inverts(
    forecast: Forecast, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert forecast.ms(low) <= forecast.ms(high)
    found = forecast.share_for(forecast.ms(one))
    assert 0.0 <= found <= 1.0
    assert forecast.ms(found) == pytest.approx(forecast.ms(one), rel=1e-6)
    assert forecast.share_for(forecast.base_ms - 1.0) == 0.0
