import numpy as np
import pytest

from lynx_controller import ControllerConfig, Phase
from lynx_controller.learn.cost import CostModel

KEY = (Phase.DECODE, 16)
OTHER = (Phase.DECODE, 4)


def feed(model: CostModel, steps: int, active: float, slope: float, base: float, **more: float):
    rng = np.random.default_rng(int(more.get("seed", 0)))
    for _ in range(steps):
        seen = active * (1.0 + 0.05 * rng.standard_normal())
        noise = 1.0 + more.get("noise", 0.0) * rng.standard_normal()
        model.learn(KEY, 16, seen, (base + slope * seen) * noise)


@pytest.mark.parametrize("ratio", [0.33, 1.0, 3.0])
def test_slope_is_found_after_one_cut_whatever_the_prior(ratio: float) -> None:
    model = CostModel(ControllerConfig(prior_slope_ms=0.03 * ratio))
    feed(model, 60, 280.0, slope=0.03, base=6.0, noise=0.05)
    feed(model, 10, 140.0, slope=0.03, base=6.0, noise=0.05, seed=1)
    assert model.slope_ms == pytest.approx(0.03, rel=0.3)
    predicted = model.base_ms(KEY, 16) + model.slope_ms * 200.0
    assert predicted == pytest.approx(12.0, rel=0.05)


def test_slope_stays_at_its_prior_where_active_experts_never_vary() -> None:
    model = CostModel(ControllerConfig())
    rng = np.random.default_rng(0)
    for _ in range(2000):
        model.learn(KEY, 16, 280.0, 14.0 * (1.0 + 0.05 * rng.standard_normal()))
    assert model.slope_ms == pytest.approx(0.5 * 14.0 / 280.0, rel=0.05)


def test_slope_is_not_forgotten_in_steady_operation() -> None:
    model = CostModel(ControllerConfig(prior_slope_ms=0.1))
    feed(model, 30, 280.0, slope=0.03, base=6.0, noise=0.02)
    feed(model, 30, 140.0, slope=0.03, base=6.0, noise=0.02, seed=1)
    rng = np.random.default_rng(2)
    for _ in range(5000):
        model.learn(KEY, 16, 140.0, 10.2 * (1.0 + 0.05 * rng.standard_normal()))
    assert model.slope_ms == pytest.approx(0.03, rel=0.25)


def test_slope_is_positive_even_where_more_experts_seem_to_cost_less() -> None:
    model = CostModel(ControllerConfig())
    for i in range(200):
        active = 100.0 + 100.0 * (i % 2)
        model.learn(KEY, 16, active, 20.0 - 0.05 * active)
    assert model.slope_ms > 0.0


def test_outliers_leave_the_model_alone() -> None:
    model = CostModel(ControllerConfig(prior_slope_ms=0.03))
    feed(model, 100, 280.0, slope=0.03, base=6.0, noise=0.05)
    before = model.base_ms(KEY, 16) + model.slope_ms * 280.0
    for _ in range(5):
        model.learn(KEY, 16, 280.0, 144.0)
        feed(model, 20, 280.0, slope=0.03, base=6.0, noise=0.05, seed=3)
    after = model.base_ms(KEY, 16) + model.slope_ms * 280.0
    assert after == pytest.approx(before, rel=0.03)
    assert model.shifts == 0


def test_a_shifted_base_is_relearned_within_six_steps() -> None:
    model = CostModel(ControllerConfig(prior_slope_ms=0.03))
    feed(model, 200, 280.0, slope=0.03, base=6.0, noise=0.05)
    feed(model, 6, 280.0, slope=0.03, base=16.0, noise=0.05, seed=1)
    assert model.base_ms(KEY, 16) == pytest.approx(16.0, rel=0.1)
    assert model.excess_ms(KEY) == pytest.approx(10.0, rel=0.15)
    feed(model, 8, 280.0, slope=0.03, base=6.0, noise=0.05, seed=2)
    assert model.excess_ms(KEY) == 0.0


def test_warm_up_of_a_size_class_is_skipped() -> None:
    model = CostModel(ControllerConfig(warmup_steps=2))
    assert model.learn(KEY, 16, 280.0, 140.0) is None
    assert model.learn(KEY, 16, 280.0, 100.0) is None
    assert model.base_ms(KEY, 16) is None
    model.learn(KEY, 16, 280.0, 14.0)
    assert model.base_ms(KEY, 16) == pytest.approx(7.0)


def test_a_new_size_class_borrows_its_neighbour() -> None:
    model = CostModel(ControllerConfig(warmup_steps=0))
    model.learn(OTHER, 4, 100.0, 9.0)
    assert model.base_ms(KEY, 16) == model.base_ms(OTHER, 4)


def test_rows_that_cost_time_are_told_from_experts() -> None:
    model = CostModel(ControllerConfig())
    rng = np.random.default_rng(0)
    for _ in range(600):
        rows = int(rng.integers(9, 17))
        active = 15.0 * rows * rng.uniform(0.5, 1.0)
        ms = (6.0 + 0.4 * rows + 0.03 * active) * (1.0 + 0.02 * rng.standard_normal())
        model.learn(KEY, rows, active, ms)
    assert model.row_ms == pytest.approx(0.4, rel=0.3)
    assert model.slope_ms == pytest.approx(0.03, rel=0.2)
