"""The controller's own errors: full quality, counted, and logged at a falling rate."""

from __future__ import annotations

import logging

import pytest

from lynx_controller import Batch, Controller, Observation, Reason, Slo
from lynx_controller.failures import Failures


def fail(step: int) -> Observation:
    """An observation on which `step` raises."""
    return Observation(step, None, 10.0, [4] * 8)  # type: ignore[arg-type]


def test_a_failure_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    controller = Controller(Slo(14.0), 8, 64, 4)
    with caplog.at_level(logging.ERROR, "lynx_controller"):
        decision = controller.step(fail(0))
    assert decision.reason is Reason.FAILED
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "AttributeError" in caplog.text
    assert "gate.py" in caplog.text  # the file that raised


def test_failures_are_counted_and_logged_at_a_falling_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    controller = Controller(Slo(14.0), 8, 64, 4)
    for step in range(100):
        controller.step(fail(step))
    assert len(caplog.records) == 7  # the 1st, 2nd, 4th ... 64th
    assert "64 times" in caplog.records[-1].getMessage()
    state = controller.state()
    assert (state["failures"], state["counts"]) == (100, {"failed": 100})
    assert "AttributeError" in state["failure"]


def test_a_failing_plan_counts_too(caplog: pytest.LogCaptureFixture) -> None:
    controller = Controller(Slo(14.0), 8, 64, 4)
    assert controller.plan(None).reason is Reason.FAILED  # type: ignore[arg-type]
    assert controller.state()["failures"] == 1
    assert len(caplog.records) == 1
    assert controller.plan(Batch.of(4)).reason is Reason.FULL


def test_a_kind_is_an_error_at_one_line_whatever_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = Failures()
    for number in range(64):
        try:
            raise ValueError(number)
        except ValueError as error:
            failures.note(error)
    assert (len(caplog.records), failures.total, failures.last) == (7, 64, "ValueError(63)")
    failures.note(TypeError())
    assert len(caplog.records) == 8
