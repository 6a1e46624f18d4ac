"""The demo over time: its file and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.monitor import Sample
from loadtests.picture import draw
from loadtests.record import Gap, Record
from loadtests.series import Demo, Series

SUMMARY = {"began_at": 100.0, "slo": {"violation_rate": 0.25}}
RECORDS = [
    Record(0, "math", 3, due_s=0.0, sent_s=0.0, end_s=2.0, gaps=[Gap(0.4, 20.0, 1)]),
    Record(1, "math", 4, due_s=1.0, sent_s=1.0, end_s=3.0, gaps=[Gap(2.2, 60.0, 2)]),
]
SAMPLES = [
    Sample(100.5, 1.0, 1.0, 64.0, 64, "full", 100, 3000.0, 100.0),
    Sample(101.5, 0.6, 1.0, 30.0, 64, "feed_forward", 150, 4000.0, 145.0),
]


def demo() -> Demo:
    runs = [
        Series.of("sglang", RECORDS, SUMMARY, [], 4.0),
        Series.of("lynx", RECORDS, SUMMARY, SAMPLES, 4.0),
    ]
    return Demo("a command", 28.5, [0.0, 1.0, 3.0, 4.0], runs)


def test_series_are_seconds_since_the_load_began() -> None:
    plain, lynx = demo().runs
    assert plain.itl_p95_ms == [(0.5, 20.0), (2.5, 30.0)]
    assert [count for _, count in plain.running[:6]] == [1, 1, 2, 2, 1, 1]
    assert plain.running[-1] == (13.5, 0)
    assert (plain.active_experts, plain.budget, plain.num_experts) == ([], [], None)
    assert lynx.active_experts == [(1.0, 20.0)]
    assert lynx.budget == [(0.5, 64.0), (1.5, 30.0)]
    assert (lynx.late_share, lynx.num_experts) == (0.25, 64)


def test_file_gives_the_same_pictures(tmp_path: Path) -> None:
    demo().write(tmp_path / "series.json")
    again = Demo.read(tmp_path / "series.json")
    assert again == demo()
    for name, made in (("a", demo()), ("b", again)):
        (tmp_path / name).mkdir()
        draw(tmp_path / name, made)
    for picture in ("demo.png", "demo-details.png"):
        assert (tmp_path / "a" / picture).read_bytes() == (tmp_path / "b" / picture).read_bytes()


def test_latencies_alone_give_the_plain_picture(tmp_path: Path) -> None:
    run = Series("sglang", 0.4, [(0.5, 20.0), (1.5, 31.0)], [], [], [], None)
    draw(tmp_path, Demo("read off a picture", 28.5, [0.0, 0.5, 1.5, 2.0], [run]))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]


def test_committed_series_are_those_of_the_committed_report() -> None:
    results = Path(__file__).parents[2] / "benchmarks/results/cpu"
    report = json.loads((results / "demo.json").read_text())
    series = Demo.read(results / "demo_series.json")
    assert series.slo_itl_ms == report["slo_itl_ms"]
    late = {run.name: run.late_share for run in series.runs}
    expected = {run["name"]: run["slo"]["violation_rate"] for run in report["runs"]}
    assert late == pytest.approx(expected, abs=1e-6)
