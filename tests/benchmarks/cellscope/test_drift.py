import numpy as np
import pytest

from benchmarks.cellscope.models.drift import Drift, Scope

REPLICAS, LAYERS = 4, 6
REPLICA = np.repeat(np.arange(REPLICAS), LAYERS)
LAYER = np.tile(np.arange(LAYERS), REPLICAS)
S = REPLICAS * LAYERS


def until_alarm(drift: Drift, score: np.ndarray, most: int = 50):
    for step in range(1, most + 1):
        alarm = drift.watch(score)
        if alarm is not None:
            return step, alarm
    return most, None


def test_arithmetic_of_one_site() -> None:
    drift = Drift([0], [0], allowance=1.0, threshold=5.0)
    assert drift.watch(np.array([3.0])) is None
    assert drift.state[:, 0].tolist() == [2.0, 0.0]
    assert drift.watch(np.array([-2.0])) is None
    assert drift.state[:, 0].tolist() == [0.0, 1.0]
    step, alarm = until_alarm(drift, np.array([3.0]))
    assert (step, alarm.scope, alarm.is_slower) == (3, Scope.LOCAL, True)
    assert drift.state.max() == 0.0


@pytest.mark.parametrize("score", [0.0, 1.25, -1.25])
def test_what_the_allowance_covers_never_alarms(score: float) -> None:
    assert until_alarm(Drift(REPLICA, LAYER), np.full(S, score), 10000)[1] is None


def test_one_clipped_outlier_never_alarms() -> None:
    drift = Drift(REPLICA, LAYER)
    assert drift.watch(np.full(S, 3.0)) is None
    assert until_alarm(drift, np.zeros(S))[1] is None


@pytest.mark.parametrize(
    ("mask", "scope"),
    [
        (np.arange(S) == 7, Scope.LOCAL),
        (REPLICA == 2, Scope.REPLICA),
        (LAYER == 3, Scope.LAYER),
        (np.ones(S, dtype=bool), Scope.FLEET),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scope_is_what_moved(mask: np.ndarray, scope: Scope, sign: float) -> None:
    step, alarm = until_alarm(Drift(REPLICA, LAYER), np.where(mask, 3.0 * sign, 0.0))
    assert step == 4
    assert alarm.scope is scope
    assert alarm.is_slower is (sign > 0)
    np.testing.assert_array_equal(alarm.which, mask)


def test_half_of_a_replica_speaks_for_all_of_it() -> None:
    moved = (REPLICA == 1) & (LAYER < 3)
    _, alarm = until_alarm(Drift(REPLICA, LAYER), np.where(moved, 3.0, 0.0))
    assert alarm.scope is Scope.REPLICA
    np.testing.assert_array_equal(alarm.which, REPLICA == 1)


def test_a_single_replica_is_not_called_a_fleet() -> None:
    _, alarm = until_alarm(Drift(np.zeros(6), np.arange(6)), np.full(6, 3.0))
    assert alarm.scope is Scope.REPLICA


def test_an_alarm_forgets_only_the_sites_it_names() -> None:
    drift = Drift(REPLICA, LAYER, allowance=1.0, threshold=5.0)
    score = np.zeros(S)
    score[0], score[7] = 3.0, 2.0
    _, alarm = until_alarm(drift, score)
    assert alarm.which.nonzero()[0].tolist() == [0]
    assert drift.state[0, 7] == 3.0


def test_noise_alone_is_quiet() -> None:
    rng = np.random.default_rng(0)
    drift = Drift(REPLICA, LAYER)
    scores = rng.standard_normal((5000, S)).clip(-3.0, 3.0)
    assert sum(drift.watch(score) is not None for score in scores) <= 1


@pytest.mark.parametrize("setting", [(0.0, 5.0), (1.0, -1.0), (float("nan"), 5.0)])
def test_impossible_settings_are_refused(setting: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="> 0"):
        Drift(REPLICA, LAYER, *setting)


def test_labels_must_match() -> None:
    with pytest.raises(ValueError, match="same length"):
        Drift([0, 1], [0])
