"""The measured retained mass holds the operator's limit, whatever the quality model expects."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plant.simulator import Load, Plant, Sample, simulate
from lynx_controller import Batch, Controller, ControllerConfig, Observation, Phase, Slo
from lynx_controller.learn.mass_feedback import MassFeedback

KEY = (Phase.DECODE, 8)
FLOOR = 0.75


def saturated(plant: Plant, rows: int, steps: int) -> list[Sample]:
    """Steps under an SLO that no cut can meet."""
    config = ControllerConfig(min_retained_mass=FLOOR)
    controller = Controller(Slo(itl_ms=0.5), 8, 64, 4, config)

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        decision = controller.step(seen)
        return decision.demand, decision.budget

    return simulate(plant, decide, [Load(rows)] * steps)


@pytest.mark.parametrize("rows", [4, 8, 16])
@pytest.mark.parametrize(("spill", "concentration"), [(2.0, 0.8), (4.0, 0.3), (8.0, 0.5)])
def test_alike_requests_keep_the_limit(spill: float, concentration: float, rows: int) -> None:
    """Few experts hold what all rows want: a cap costs several times what it costs mixed rows."""
    samples = saturated(Plant(spill=spill, concentration=concentration, seed=3), rows, 300)
    masses = [sample.mass for sample in samples]
    assert fmean(masses[2:62]) >= FLOOR
    assert fmean(masses[62:122]) >= FLOOR
    assert FLOOR <= fmean(masses[200:]) < FLOOR + 0.05


def test_mixed_requests_are_cut_as_the_model_says() -> None:
    samples = saturated(Plant(seed=3), 16, 300)
    assert FLOOR <= fmean(sample.mass for sample in samples[100:]) < FLOOR + 0.02


def test_what_alike_requests_taught_is_unlearned_slowly() -> None:
    plant = Plant(spill=6.0, seed=3)
    config = ControllerConfig(min_retained_mass=FLOOR)
    controller = Controller(Slo(itl_ms=0.5), 8, 64, 4, config)

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        if seen.step == 200:
            plant.spill = 1.06
        decision = controller.step(seen)
        return decision.demand, decision.budget

    samples = simulate(plant, decide, [Load(16)] * 800)
    assert all(sample.mass > FLOOR for sample in samples[203:230])
    assert fmean(sample.mass for sample in samples[700:]) < FLOOR + 0.03


def test_steps_without_flexible_rows_teach_nothing() -> None:
    config = ControllerConfig(min_retained_mass=FLOOR)
    controller, plant = Controller(Slo(itl_ms=0.5), 8, 64, 4, config), Plant(spill=6.0, seed=3)

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        decision = controller.step(seen)
        return decision.demand, decision.budget

    simulate(plant, decide, [Load(8)] * 100)
    before = controller._mass.lift(KEY)
    assert before > 0.0
    exact = Batch.of(8, flexible_rows=0)
    for step in range(1_000, 1_050):
        controller.step(Observation(step, exact, 14.0, [20] * 8, [1.0] * 8))
    assert controller._mass.lift(KEY) == before


masses = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(masses, st.floats(0.0, 1.0)), min_size=1, max_size=40),
    st.floats(0.0, 1.0),
    st.floats(0.01, 1.0),
)
def test_the_lift_stays_in_range_and_rises_only_below_the_limit(
    steps: list[tuple[list[float], float]], min_share: float, least_mass: float
) -> None:
    feedback = MassFeedback()
    for seen, share in steps:
        before = feedback.lift(KEY)
        feedback.observe(KEY, seen, share, min_share, least_mass)
        after = feedback.lift(KEY)
        assert 0.0 <= after <= 1.0
        if after > before:
            assert feedback.kept[KEY] < least_mass


@pytest.mark.parametrize("wrong", [[], [math.nan], [1.5, 0.5], [-0.1]])
def test_an_impossible_mass_is_no_sample(wrong: list[float]) -> None:
    feedback = MassFeedback()
    feedback.observe(KEY, wrong, 0.5, 0.5, FLOOR)
    assert feedback.lift(KEY) == 0.0


def test_a_lighter_cut_says_nothing_of_the_least_share() -> None:
    feedback = MassFeedback()
    feedback.observe(KEY, [0.5], 0.5, 0.5, FLOOR)
    lift = feedback.lift(KEY)
    assert lift > 0.0
    for _ in range(50):
        feedback.observe(KEY, [0.95], 0.9, 0.5, FLOOR)
    feedback.kept[KEY] = 0.95
    feedback.observe(KEY, [0.95], 0.9, 0.5, FLOOR)
    assert feedback.lift(KEY) >= lift


def test_a_new_size_class_starts_from_its_neighbour() -> None:
    feedback = MassFeedback()
    feedback.observe((Phase.DECODE, 8), [0.3], 0.5, 0.5, FLOOR)
    assert feedback.lift((Phase.DECODE, 16)) == feedback.lift((Phase.DECODE, 8)) > 0.0
