from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.plant import passes
from benchmarks.plant.playback import Playback
from benchmarks.plant.simulator import Load, Plant, Sample, Setting, simulate
from lynx_controller import Controller, Observation, Slo
from lynx_controller.log.decision_log import Log, LoggedController

PASSES = Path(__file__).with_name("passes.jsonl")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's: rows come and go, and every batch was cut now and then."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = Log(path)
    controller = LoggedController(log, Slo(itl_ms=13.0), 8, 64, 4)
    loads = [Load(rows) for rows in (4, 16, 8, 24, 16) for _ in range(80)]
    in_force = [64]

    def decide(seen: Observation) -> Setting:
        cap = (64, 24, 18, 12)[seen.step // 20 % 4]
        controller.override(budget=cap, demand=1.0)
        decision = controller.step(replace(seen, demand=1.0, budget_applied=in_force[-1]))
        in_force.append(cap)
        return decision.demand, decision.budget

    simulate(Plant(seed=2), decide, loads, lag_steps=1)
    log.close()
    return path


def decider(controller: Controller):  # type: ignore[no-untyped-def]
    def decide(seen: Observation) -> Setting:
        decision = controller.step(seen)
        return decision.demand, decision.budget

    return decide


def fixed(playback: Playback, cap: int) -> list[Sample]:
    return [playback.run(load, (1.0, (cap,) * 8))[1] for load in playback.loads]


def test_under_its_own_decisions_it_is_what_was_recorded(log: Path) -> None:
    playback = Playback(log)
    recorded = playback.recorded
    for load, seen in zip(playback.loads, recorded, strict=True):
        assert isinstance(seen.budget_applied, int)
        played, _ = playback.run(load, (1.0, (seen.budget_applied,) * 8))
        assert played.step_ms == pytest.approx(seen.step_ms)
        assert played.active_experts == pytest.approx(seen.active_experts)


def test_what_a_cut_saves_is_what_the_plant_would_have_saved(log: Path) -> None:
    plant = Plant(seed=2)
    cut, full = fixed(Playback(log), 15), fixed(Playback(log), 64)
    for rows in (8, 16, 24):
        saved = np.mean(
            [a.gap_ms - b.gap_ms for a, b in zip(full, cut, strict=True) if a.load.rows == rows]
        )
        layers = plant.layers(rows)
        truth = plant.slope_ms * float((layers - np.minimum(layers, 15)).sum())
        assert saved == pytest.approx(truth, rel=0.25)
    assert np.mean([each.mass for each in cut]) < np.mean([each.mass for each in full]) <= 1.0


def test_a_law_can_be_tried_on_it(log: Path) -> None:
    tight, playback = Controller(Slo(itl_ms=12.0), 8, 64, 4), Playback(log)
    samples = simulate(playback, decider(tight), playback.loads)
    late = np.mean([each.gap_ms > 12.0 for each in samples[160:240]])
    assert late <= 0.1
    assert min(each.share for each in samples) < 0.9


def test_sglangs_own_record_can_be_played_with_what_a_log_taught(log: Path) -> None:
    read = list(passes.read(PASSES))
    playback = Playback(log, PASSES)
    assert [load.rows for load in playback.loads] == [each.rows for each in read]
    full, cut = fixed(playback, 64), fixed(Playback(log, PASSES), 5)
    gaps = [each.step_ms + each.outside_ms for each in read]
    assert [each.gap_ms for each in full] == pytest.approx(gaps)
    assert all(each.mass == pytest.approx(1.0) for each in full)
    for before, after in zip(full, cut, strict=True):
        assert after.active < before.active == pytest.approx(before.uncapped)
        assert after.gap_ms < before.gap_ms


def test_sglangs_record_alone_is_refused_with_the_reason(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither the active experts nor the caps"):
        Playback(PASSES)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match="no pass that only decodes"):
        Playback(log, empty)


def test_a_log_without_decode_steps_is_refused(log: Path, tmp_path: Path) -> None:
    header = log.read_text().splitlines()[0]
    for text in (header, header + '\n{"torn', header + '\n{"n": 1, "call": "step", "with": {}}'):
        path = tmp_path / "log.jsonl"
        path.write_text(text + "\n")
        with pytest.raises(ValueError, match="no decode step"):
            Playback(path)
    path.write_text("nonsense\n")
    with pytest.raises(ValueError, match="not a decision log"):
        Playback(path)
