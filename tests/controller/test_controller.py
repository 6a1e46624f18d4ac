import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.plant.simulator import Load, Plant, simulate
from lynx_controller import Batch, Controller, Decision, Observation, Phase, Reason, Slo
from lynx_controller.learn.cost import CostModel

LAYERS, EXPERTS, TOP_K = 8, 64, 4


def make(slo_ms: float | None = 12.0, layer_offsets: list[float] | None = None) -> Controller:
    return Controller(Slo(itl_ms=slo_ms), LAYERS, EXPERTS, TOP_K, layer_offsets=layer_offsets)


def decode(step: int, ms: float = 14.4, active: float = 35, rows: int = 16) -> Observation:
    return Observation(step, Batch.of(rows, size_class=16), ms, [active] * LAYERS)


def drive(controller: Controller, steps: int, rows: int = 16, **plant: float) -> list[Decision]:
    """Closed loop on a noise-free plant unless told otherwise."""
    decisions = []

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        seen = replace(seen, step=seen.step + (controller.state()["steps"] and offset))
        decisions.append(controller.step(seen))
        return decisions[-1].demand, decisions[-1].budget

    offset = controller.state()["steps"]
    settings = {"noise": 0.0, "jitter": 0.0, **plant}
    simulate(Plant(**settings), decide, [Load(rows)] * steps)  # type: ignore[arg-type]
    return decisions


def test_full_quality_before_anything_is_known() -> None:
    decision = make().step(decode(0))
    assert decision.budget == (EXPERTS,) * LAYERS
    assert (decision.share, decision.demand, decision.reason) == (1.0, 1.0, Reason.FULL)


def test_no_slo_is_full_quality_and_still_learns() -> None:
    controller = make(slo_ms=None)
    decisions = drive(controller, 50)
    assert {decision.reason for decision in decisions} == {Reason.FULL}
    assert {decision.share for decision in decisions} == {1.0}
    assert decisions[-1].predicted_ms > 5.0


def test_an_slo_set_at_run_time_fits_at_the_next_decision() -> None:
    controller = make(slo_ms=None)
    full_ms = drive(controller, 50)[-1].predicted_ms
    controller.set_slo(Slo(itl_ms=0.95 * full_ms))
    decision = controller.step(decode(1000, ms=full_ms, active=35))
    assert decision.reason is Reason.FEED_FORWARD
    assert decision.share < 1.0
    assert decision.predicted_ms <= 0.95 * full_ms


def test_the_caps_are_the_share_of_what_each_layer_would_use() -> None:
    decisions = drive(make(slo_ms=12.0), 100)
    uncapped, decision = float(Plant().layers(16).sum()), decisions[-1]
    assert 0.5 < decision.share < 1.0
    assert decision.expected_active == decision.budget
    assert sum(decision.budget) == pytest.approx(decision.share * uncapped, rel=0.02)
    assert len(set(decision.budget)) > 2  # the plant's layers differ


def test_caps_stand_still_while_only_estimates_wander() -> None:
    decisions = drive(make(slo_ms=17.0), 700, noise=0.05, jitter=0.06)[200:]
    assert 0.7 < decisions[-1].share < 1.0
    moves = sum(a.budget != b.budget for a, b in itertools.pairwise(decisions))
    assert moves <= 10
    uncapped = sum(decisions[-1].budget) / decisions[-1].share
    assert uncapped == pytest.approx(268.0, rel=0.04)  # the plant's, at 16 rows


def test_layers_that_a_cut_hurts_more_get_more_and_the_sum_stays() -> None:
    offsets = [0.2, -0.2] * 4
    same, shaped = make(slo_ms=13.5), make(slo_ms=13.5, layer_offsets=offsets)
    plain, decision = (drive(each, 100)[-1] for each in (same, shaped))
    assert sum(decision.budget) == pytest.approx(sum(plain.budget), abs=3.0)
    shares = np.array(decision.budget) / np.array(plain.budget)
    assert all(shares[0::2] > 1.1)
    assert all(shares[1::2] < 0.9)
    shaped.set_slo(Slo())
    assert shaped.step(decode(1000)).budget == (EXPERTS,) * LAYERS


@pytest.mark.parametrize(
    "change",
    [
        {"batch": Batch.of(16, Phase.IDLE)},
        {"batch": Batch.of(16, Phase.PREFILL)},
        {"batch": Batch.of(0, Phase.MIXED)},
        {"batch": Batch.of(0)},
        {"batch": Batch(Phase.DECODE, -3, 0, 16)},
        {"step_ms": float("nan")},
        {"step_ms": float("inf")},
        {"step_ms": 0.0},
        {"step_ms": -5.0},
        {"step_ms": 1e9},
        {"step": 60},
        {"step": 3},
    ],
)
def test_frozen_holds_the_decision_and_learns_nothing(change: dict[str, object]) -> None:
    controller = make()
    for step in range(61):
        last = controller.step(decode(step))
    before = controller.state()
    frozen = controller.step(replace(decode(61), **change))  # type: ignore[arg-type]
    assert frozen == replace(last, reason=Reason.FROZEN)
    after = controller.state()
    for name in ("slope_ms", "bases_ms", "noise", "feedback_ms", "windowed_itl_ms"):
        assert after[name] == before[name]


def test_an_unreadable_step_leaves_a_newer_plan_in_force() -> None:
    controller = make()
    for step in range(20):
        controller.step(decode(step))
    controller.override(budget=8)
    plan = controller.plan(Batch.of(16, size_class=16))
    assert plan.budget == (8,) * LAYERS
    frozen = controller.step(replace(decode(20), step_ms=math.nan))
    assert frozen == replace(plan, reason=Reason.FROZEN)


def test_an_engine_that_counts_from_zero_again_is_believed_after_a_while() -> None:
    controller = make()
    for step in range(1000, 1020):
        controller.step(decode(step))
    reasons = [controller.step(decode(step)).reason for step in range(40)]
    assert reasons[:7] == [Reason.FROZEN] * 7
    assert reasons[7:15] == [Reason.BLIND] * 8
    assert Reason.FROZEN not in reasons[15:]


def test_missing_expert_counts_still_get_a_decision() -> None:
    controller = make()
    for step in range(20):
        controller.step(decode(step))
    slope = controller.state()["slope_ms"]
    decision = controller.step(replace(decode(20), active_experts=[]))
    assert decision.reason not in (Reason.FAILED, Reason.FROZEN)
    assert controller.state()["slope_ms"] == slope


def test_an_exception_ends_at_full_quality_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = make()
    drive(controller, 30)

    def explode(*_: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(CostModel, "base_ms", explode)
    decision = controller.step(decode(100))
    monkeypatch.undo()
    assert (decision.reason, decision.share) == (Reason.FAILED, 1.0)
    assert decision.budget == (EXPERTS,) * LAYERS
    assert controller.state()["counts"]["failed"] == 1
    assert "boom" in controller.state()["failure"]


def test_override_fixes_and_hands_back_without_a_jump() -> None:
    controller = make(slo_ms=14.0)
    auto = drive(controller, 100)[-1].share
    controller.override(demand=0.55)
    fixed = controller.step(replace(decode(101, active=18), demand=0.55, budget_applied=EXPERTS))
    assert (fixed.demand, fixed.reason) == (0.55, Reason.OVERRIDE)
    assert fixed.budget == (EXPERTS,) * LAYERS
    assert fixed.share == pytest.approx(0.54, abs=0.02)  # read last, of 34
    controller.override()
    before = fixed.share
    for decision in drive(controller, 60):
        assert abs(decision.share - before) <= controller.config.handover + 1e-9
        before = decision.share
    assert before == pytest.approx(auto, abs=0.05)


def test_under_an_slo_a_cap_leaves_the_law_at_work_below_it() -> None:
    capped = make(slo_ms=14.0)
    capped.override(budget=24)
    decision = drive(capped, 100)[-1]
    assert max(decision.budget) <= 24
    assert decision.reason is not Reason.OVERRIDE
    tight = make(slo_ms=9.0)
    tight.override(budget=24)
    assert drive(tight, 100)[-1].share < decision.share


def test_a_fixed_share_is_split_over_the_layers_as_the_laws_is() -> None:
    plant, offsets = Plant(seed=2), [0.1, -0.1] * 4
    controller = Controller(Slo(itl_ms=1.0), 8, 64, 4, layer_offsets=offsets)
    controller.override(share=0.5)

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        decision = controller.step(seen)
        assert decision.reason is Reason.OVERRIDE
        assert (decision.share, decision.demand) == (0.5, 1.0)
        return decision.demand, decision.budget

    samples = simulate(plant, decide, [Load(16)] * 60)
    assert samples[-1].share == pytest.approx(0.5, abs=0.05)
    even, odd = controller.step(plant.run(Load(16), (1.0, (64,) * 8))[0]).budget[:2]
    assert even > odd
    with pytest.raises(ValueError, match="share must be in"):
        controller.override(share=0.0)


def test_override_of_the_budget() -> None:
    controller = make(slo_ms=None)
    drive(controller, 20)
    controller.override(budget=9)
    decision = controller.step(decode(1000))
    assert decision.budget == (9,) * LAYERS
    assert sum(decision.expected_active) <= 9 * LAYERS + 1e-9
    controller.override(budget="full")
    assert controller.step(decode(1001)).budget == (EXPERTS,) * LAYERS
    controller.override(budget=10_000)
    assert controller.step(decode(1002)).budget == (EXPERTS,) * LAYERS


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": "half"}, {"budget": True}])
def test_override_rejects_budgets(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="budget"):
        make().override(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("demand", [-0.1, 1.1, float("nan")])
def test_override_rejects_demands(demand: float) -> None:
    with pytest.raises(ValueError, match="demand"):
        make().override(demand=demand)


def test_min_retained_mass_can_be_raised_at_run_time() -> None:
    controller = make(slo_ms=6.0)
    assert drive(controller, 50)[-1].share == pytest.approx(0.5, abs=0.02)
    controller.set_min_retained_mass(0.9)
    assert controller.step(decode(1000)).share == pytest.approx(0.7, abs=0.02)
    with pytest.raises(ValueError, match="min_retained_mass"):
        controller.set_min_retained_mass(0.0)


def test_rows_that_may_not_be_cut_are_not_promised_to_be() -> None:
    controller = make(slo_ms=14.0)
    drive(controller, 60)
    some = controller.plan(Batch.of(16, flexible_rows=4))
    every = controller.plan(Batch.of(16, flexible_rows=16))
    assert some.share <= every.share
    none = controller.plan(Batch.of(16, flexible_rows=0))
    assert (none.share, none.saturated) == (1.0, True)


def test_plan_knows_the_batch_before_it_runs() -> None:
    controller = make(slo_ms=13.0)
    drive(controller, 60, rows=4)
    assert controller.plan(Batch.of(4)).share == 1.0
    assert controller.plan(Batch.of(16)).share < 1.0


def test_phases_keep_their_own_state() -> None:
    controller = make()
    for step in range(20):
        controller.step(decode(step))
    for step in range(20, 24):
        controller.step(replace(decode(step), batch=Batch.of(16, Phase.VERIFY), step_ms=30.0))
    bases = controller.state()["bases_ms"]
    assert set(bases) == {"decode/16", "verify/16"}


def test_state_is_plain_json() -> None:
    controller = make()
    drive(controller, 30)
    state = controller.state()
    assert json.loads(json.dumps(state, allow_nan=False)) == state


def test_a_log_replays_to_the_same_decisions() -> None:
    first, second = make(slo_ms=14.0), make(slo_ms=14.0)
    log = []

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        decision = first.step(seen)
        log.append(json.dumps([seen.to_dict(), decision.to_dict()]))
        return decision.demand, decision.budget

    simulate(Plant(seed=3), decide, [Load(16)] * 80)
    for line in log:
        seen, decided = json.loads(line)
        decision = second.step(Observation.from_dict(seen))
        assert decision == Decision.from_dict(decided)


def test_every_number_is_finite_with_absurd_but_legal_inputs() -> None:
    controller = make()
    for step in range(200):
        ms = 10.0 ** ((step % 9) - 4)
        batch = Batch(Phase.DECODE, rows := 1 + 997 * (step % 5), rows, size_class=0)
        seen = replace(decode(step, ms=ms, active=float(step % 64) + 0.5), batch=batch)
        decision = controller.step(seen)
        assert math.isfinite(decision.predicted_ms)
        assert 0.25 <= decision.share <= 1.0
