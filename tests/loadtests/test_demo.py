"""The demo: its SLO, load, recovery, bars, table, and what it says while it runs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtests import calibration, demo, picture, report
from loadtests.bars import judge
from loadtests.calibration import Pace
from loadtests.demo import HIGH_SHARE, LOW_SHARE, shape_of, slo
from loadtests.monitor import Sample, course, means, recovery_s
from loadtests.stream import Chunk, Exchange

FULL = Sample(10.0, 1.0, 1.0, 64.0, 64, "full", 100, 3000.0, 100.0)
CUT = Sample(11.0, 0.6, 1.0, 30.0, 64, "feed_forward", 150, 4000.0, 145.0)
AGAIN = replace(CUT, at=14.5, share=1.0, budget=64.0, reason="full")

PLAIN: dict[str, Any] = {
    "name": "sglang", "itl_p50_ms": 30.0, "itl_p95_ms": 50.0, "slo_violation_rate": 0.6,
    "tokens_per_s": 400.0, "accuracy_math": 0.96, "accuracy_code": 1.0,
    "mean_active_experts": None, "mean_retained_mass": None, "requests": 400, "failed": 0,
    "peak_running": 20, "recovery_s": None, "asked": {"math": 200, "code": 200},
}  # fmt: skip
LYNX = {
    **PLAIN, "name": "lynx", "slo_violation_rate": 0.2, "accuracy_math": 0.94, "recovery_s": 3.5,
}  # fmt: skip


def test_slo_lies_between_the_plain_servers_times() -> None:
    unloaded, loaded = Pace(1, 8.0, 9.0, 1.0, 60.0), Pace(16, 30.0, 48.0, 5.0, 400.0)
    assert slo(unloaded, loaded, 0.75) == 24.5
    shape = shape_of(loaded, 60.0)
    assert [plateau.rate_per_s for plateau in shape.plateaus] == [
        5 * LOW_SHARE, 5 * HIGH_SHARE, 5 * LOW_SHARE,
    ]  # fmt: skip


def test_pace_counts_only_the_measured_window() -> None:
    exchange = Exchange(0.0, [Chunk(0.1 * step, "a", 1) for step in range(1, 11)], 1.0, 10)
    pace = Pace.of(1, [exchange], began_s=0.0, ends_s=0.55)
    assert pace.tokens_per_s == pytest.approx(4 / 0.55)
    assert pace.itl_p50_ms == pytest.approx(100)
    assert pace.answers_per_s == pytest.approx(4 / 5.5)


def test_means_are_differences_of_sums() -> None:
    between = means(FULL, CUT)
    assert between is not None
    assert (between.active_experts, between.retained_mass) == (20.0, 0.9)
    assert means(CUT, CUT) is None
    assert len(course([FULL, CUT, AGAIN])) == 1  # no step between the last two


def test_recovery_is_the_first_full_reading_after_the_fall() -> None:
    samples = [FULL, CUT, replace(AGAIN, budget=63.5), AGAIN]
    assert recovery_s(samples, fell_at=10.5) == 4.0
    assert recovery_s(samples[:3], fell_at=10.5) is None


def test_bars_met() -> None:
    assert [str(bar) for bar in judge(PLAIN, LYNX) if not bar.is_met] == []


@pytest.mark.parametrize(
    "change",
    [
        {"failed": 1},
        {"requests": 0},
        {"slo_violation_rate": 0.21},
        {"accuracy_math": 0.939},
        {"accuracy_code": 0.97},
        {"recovery_s": 5.5},
        {"recovery_s": None},
    ],
)
def test_each_bar_can_fail(change: dict[str, Any]) -> None:
    assert sum(not bar.is_met for bar in judge(PLAIN, {**LYNX, **change})) == 1


def test_an_slo_that_plain_holds_proves_nothing() -> None:
    held = {**PLAIN, "slo_violation_rate": 0.0}
    assert not all(bar.is_met for bar in judge(held, {**LYNX, "slo_violation_rate": 0.0}))


def test_table_has_a_line_per_run() -> None:
    text = report.table(report.document(20.0, [PLAIN, LYNX]))
    assert "60.0%" in text
    assert [line.split()[0] for line in text.splitlines()[3:5]] == ["sglang", "lynx"]


def test_every_stage_is_announced_with_its_number_and_the_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = SimpleNamespace(url="", post=lambda path, body: None)
    alone, loaded = Pace(1, 8.0, 9.0, 1.0, 60.0), Pace(16, 30.0, 48.0, 5.0, 400.0)
    paces = iter([alone, loaded, alone])
    rows = iter([PLAIN, LYNX, LYNX])
    summary = {"began_at": 0.0, "slo": {"violation_rate": 0.0}}
    runs = {name: demo.Run(name, [], summary, []) for name in ("sglang", "lynx", "lynx-full")}
    monkeypatch.setattr(demo, "stop_with_me", lambda: None)
    monkeypatch.setattr(demo, "Server", lambda *_: nullcontext(server))
    monkeypatch.setattr(demo, "load", lambda name, *_: runs[name])
    monkeypatch.setattr(calibration, "measure", lambda *_: next(paces))
    monkeypatch.setattr(report, "row", lambda *_: next(rows))
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["demo", "--width", "1", "--out", str(tmp_path)])
    assert demo.main() == 0
    said = capsys.readouterr().err
    for number, name in enumerate(demo.STAGES, 1):
        assert f"{number} of {len(demo.STAGES)}: {name}" in said
    for name in demo.STAGES[1:]:
        assert f"; next: {name}\n" in said
