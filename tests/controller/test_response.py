import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_controller import ControllerConfig, Phase
from lynx_controller.forecast import Forecast
from lynx_controller.response import KNOTS, Response, interpolate

KEY = (Phase.DECODE, 16)


def response() -> Response:
    return Response(ControllerConfig(), num_layers=8, num_experts=64, top_k=4)


def test_uniform_routing_is_the_yardstick() -> None:
    assert response().uniform(1) == pytest.approx(8 * 4)
    assert response().uniform(10_000) == pytest.approx(8 * 64)


def test_the_first_sample_scales_the_whole_curve() -> None:
    plant = response()
    curve = plant.curve(KEY, 16)
    before = list(curve.values)
    plant.learn(curve, 1.0, 0.6, is_capped=False)
    assert curve.values[-1] == pytest.approx(0.6)
    assert all(now < then for now, then in zip(curve.values, before, strict=True))


def test_long_evidence_at_one_demand_leaves_another_free_to_move() -> None:
    plant = response()
    curve = plant.curve(KEY, 16)
    for _ in range(500):
        plant.learn(curve, 1.0, 0.8, is_capped=False)
    for _ in range(3):
        plant.learn(curve, 0.6, 0.7, is_capped=False)
    assert interpolate(curve.values, 0.6) == pytest.approx(0.7, rel=0.05)
    assert curve.values[-1] == pytest.approx(0.8, rel=0.02)


def test_a_binding_cap_is_only_a_lower_bound() -> None:
    plant = response()
    curve = plant.curve(KEY, 16)
    before = list(curve.values)
    plant.learn(curve, 1.0, 0.2, is_capped=True)
    assert curve.values == before
    plant.learn(curve, 0.5, 1.2 * interpolate(before, 0.5), is_capped=True)
    assert interpolate(curve.values, 0.5) > interpolate(before, 0.5)


def test_a_new_slot_starts_from_its_neighbour() -> None:
    plant = response()
    plant.learn(plant.curve(KEY, 16), 1.0, 0.5, is_capped=False)
    near = plant.curve((Phase.DECODE, 32), 30)
    assert near.values == plant.curve(KEY, 16).values


samples = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 10.0), st.booleans())


@given(st.lists(samples, max_size=40))
def test_curves_stay_monotone_positive_and_invert(seen: list[tuple[float, float, bool]]) -> None:
    plant = response()
    curve = plant.curve(KEY, 16)
    for demand, ratio, is_capped in seen:
        plant.learn(curve, demand, ratio, is_capped)
    assert all(value > 0.0 for value in curve.values)
    assert curve.values == sorted(curve.values)
    forecast = Forecast(5.0, 0.03, tuple(100.0 * value for value in curve.values))
    for demand in (*KNOTS, 0.05, 0.77, 0.99):
        ms = forecast.ms(demand)
        assert forecast.ms(forecast.demand_for(ms)) == pytest.approx(ms, rel=1e-6)
