"""The progress lines of a long program."""

from __future__ import annotations

import time

import pytest

from loadtests import progress
from loadtests.progress import Stages, track


def test_a_stage_says_its_number_its_length_and_the_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = Stages("start", "measure")
    with stages.next():
        pass
    with stages.next(expected_s=80):
        pass
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("1 of 2: start; next: measure")
    assert second.endswith("2 of 2: measure (80 s)")


def test_a_long_stage_says_that_it_still_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.02)
    with Stages("start").next():
        time.sleep(0.2)
    _, again, *_ = capsys.readouterr().err.splitlines()
    assert again.strip() == "start: 0 s"


def test_a_failed_stage_falls_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no port"), Stages("start").next():
        raise ValueError("no port")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_items_come_through_and_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter([0.0, 0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now_s))
    assert list(track("abcd", "sweep")) == list("abcd")
    assert capsys.readouterr().err.splitlines() == [
        "sweep 1 of 4: a",
        "sweep 3 of 4: c; 20 s left",
    ]
