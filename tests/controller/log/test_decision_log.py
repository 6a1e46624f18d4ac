import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plant.simulator import Load, Plant, simulate
from lynx_controller import Batch, ControllerConfig, Observation, Phase, Reason, Slo
from lynx_controller.log.decision_log import Log, LoggedController
from lynx_controller.log.replay import BECAUSE, replay, show


def record(path: Path, loads: list[Load], slo_ms: float = 14.0, max_lines: int = 200_000) -> int:
    """A run with everything in it that can be logged; calls made."""
    log = Log(path, max_lines)
    controller = LoggedController(
        log, Slo(slo_ms), 8, 64, 4, ControllerConfig(min_retained_mass=0.7), [0.1, -0.1] * 4
    )
    calls = 0

    def decide(seen: Observation) -> tuple[float, tuple[int, ...]]:
        nonlocal calls
        calls += 1
        if seen.step == 40:
            controller.set_slo(Slo(slo_ms * 0.95, 99.0))
            controller.set_min_retained_mass(0.72)
            calls += 2
        if seen.step == 90:
            controller.set_max_quality_loss(0.001)
            calls += 1
        if seen.step in (60, 80):
            controller.override(demand=0.8 if seen.step == 60 else None)
            calls += 1
        if seen.step == 50:
            seen = replace(seen, step_ms=float("nan"))
        controller.step(seen)
        decision = controller.plan(Batch.of(seen.batch.rows))
        calls += 1
        return decision.demand, decision.budget

    simulate(Plant(seed=4, kl_gain=0.2, shadow_share=0.3), decide, loads)
    log.close()
    assert log.dropped == 0
    return calls


def test_replaying_gives_the_same_decisions_with_reasons(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    calls = record(path, [Load(4)] * 20 + [Load(16)] * 100 + [Load(4)] * 20)
    again = list(replay(path))
    assert len(again) == calls
    assert all(each.is_same for each in again)
    assert [each.number for each in again] == list(range(1, calls + 1))
    reasons = {each.decided.reason for each in again if each.decided is not None}
    assert reasons > {Reason.FEED_FORWARD, Reason.HOLD, Reason.OVERRIDE, Reason.FROZEN}
    assert any(each.given.get("shadow_kl") for each in again)
    guarded = next(each for each in again if each.decided and each.decided.guard_share)
    assert "Quality limit 0.001 nats -> share at least" in guarded.why
    for each in again:
        if each.decided is not None:
            assert BECAUSE[each.decided.reason] in each.why
    moved = next(each for each in again if each.decided and each.decided.share < 1.0)
    assert moved.min_share_ms is not None
    assert moved.full_ms is not None
    assert moved.min_share_ms <= moved.decided.predicted_ms <= moved.full_ms  # type: ignore[union-attr]


def test_every_reason_is_explained() -> None:
    assert set(BECAUSE) == set(Reason)


def test_show_explains_one_step_and_counts(tmp_path: Path) -> None:
    path, lines = tmp_path / "log.jsonl", list[str]()
    calls = record(path, [Load(16)] * 30)
    assert show(path, lines.append, step=25) == (calls, 0)
    assert len(lines) == 2
    assert "step 25 decode, 16 rows" in lines[0]
    assert "SLO p95 14 ms -> target" in lines[0]
    assert lines[1] == f"{calls} calls replayed, 0 decided differently"


def test_a_changed_decision_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    record(path, [Load(16)] * 10)
    lines = path.read_text().splitlines()
    last = json.loads(lines[-1])
    last["decision"]["share"] = 0.123
    path.write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    *before, changed = replay(path)
    assert all(each.is_same for each in before)
    assert not changed.is_same
    assert "RECORDED DIFFERENTLY" in changed.why


def test_a_torn_last_line_and_a_full_log_end_the_replay(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    record(path, [Load(16)] * 10, max_lines=8)
    assert len(list(replay(path))) == 7
    path.write_text(path.read_text()[:-30])
    assert len(list(replay(path))) == 6


@pytest.mark.parametrize("header", ["", "[]", "{}", "nonsense", '{"lynx_log": 2}'])
def test_what_is_no_log_of_this_version_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(header + "\n")
    with pytest.raises(ValueError, match="log"):
        list(replay(path))


def test_missing_calls_are_told(tmp_path: Path) -> None:
    path, lines = tmp_path / "log.jsonl", list[str]()
    record(path, [Load(16)] * 10)
    kept = path.read_text().splitlines()
    path.write_text("\n".join(kept[:5] + kept[8:]) + "\n")
    show(path, lines.append)
    assert "3 calls are missing" in lines[-1]


anything = st.one_of(st.none(), st.text(max_size=3), st.floats(), st.lists(st.floats(), max_size=3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(anything, anything, anything), max_size=6))
def test_logging_never_raises_and_replays_the_same(
    tmp_path_factory: pytest.TempPathFactory, garbage: list[tuple[object, object, object]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = Log(path)
    controller = LoggedController(log, Slo(14.0), 2, 8, 2)
    for i, (ms, rows, active) in enumerate(garbage):
        batch = Batch(Phase.DECODE, rows, 0, 0)  # type: ignore[arg-type]
        controller.step(Observation(i, batch, ms, active))  # type: ignore[arg-type]
    controller.step(Observation(100, Batch.of(4, size_class=4), 10.0, [3, 3]))
    log.close()
    assert all(each.is_same for each in replay(path))


def test_a_slow_disk_costs_lines_not_steps(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.close()
    for _ in range(5000):
        log.write({"late": 1})  # after close: ignored
    assert log.dropped == 0
    with pytest.raises(FileNotFoundError):
        Log(tmp_path / "nowhere" / "log.jsonl")


def test_a_full_disk_costs_lines_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(Path("/dev/full"))
    for number in range(5):
        log.write({"n": number})
    log.close()
    assert log.dropped == 5
    (record,) = caplog.records
    assert "/dev/full loses lines" in record.message
