import pytest

from lynx_controller import Batch, Decision, Observation, Reason
from lynx_controller.learn.history import History

FULL = (64, 64)


def decision(share: float, cap: int) -> Decision:
    return Decision((cap, cap), 1.0, (1.0, 1.0), Reason.HOLD, False, 10.0, share)


def seen(step: int, **applied: object) -> Observation:
    return Observation(step, Batch.of(4, size_class=4), 10.0, [4, 4], **applied)  # type: ignore[arg-type]


@pytest.fixture
def history() -> History:
    history = History(FULL, lag_steps=2)
    for step in range(10):
        history.remember(step, decision(0.8, 20))
    history.remember(10, decision(0.5, 9))
    return history


def test_nothing_decided_is_full_quality() -> None:
    applied = History(FULL, lag_steps=2).applied(seen(5))
    assert (applied.demand, applied.budget, applied.is_certain) == (1.0, FULL, True)


@pytest.mark.parametrize(("step", "cap"), [(10, 20), (11, 20), (12, 9), (15, 9)])
def test_a_decision_applies_after_its_lag(history: History, step: int, cap: int) -> None:
    assert history.applied(seen(step)).budget == (cap, cap)


@pytest.mark.parametrize(("step", "is_certain"), [(10, False), (12, False), (16, True)])
def test_steps_around_a_move_are_not_certain(history: History, step: int, is_certain: bool) -> None:
    for later in range(11, step):
        history.remember(later, decision(0.5, 9))
    assert history.applied(seen(step)).is_certain is is_certain


def test_what_the_step_reports_is_believed(history: History) -> None:
    applied = history.applied(seen(11, demand=0.6, budget_applied=7))
    assert (applied.demand, applied.budget, applied.is_certain) == (0.6, (7, 7), True)
    assert history.applied(seen(11, budget_applied=[5, 6])).budget == (5, 6)
    assert history.applied(seen(11, demand=float("nan"))).demand == 1.0
    assert history.applied(seen(11, budget_applied=[0, -3])).budget == (20, 20)


def test_a_restarted_count_forgets(history: History) -> None:
    history.remember(0, decision(1.0, 64))
    assert len(history.decisions) == 1
