"""``lynx-sglang watch``: a frame from two readings of ``/server_info``."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from lynx_controller import Reason
from lynx_sglang import cli, watch
from lynx_sglang.connection import Connection, ConnectionFailed


def part(**values: Any) -> dict[str, Any]:
    """A scheduler that has run 100 decode steps."""
    tiers = {
        "flexible": {"requests": 3, "decode_tokens": 800, "degraded_tokens": 200},
        "exact": {"requests": 1, "decode_tokens": 100, "degraded_tokens": 0},
    }
    decision = {
        "budget": [30, 34], "expected_active": [24.0, 26.0], "share": 0.625, "reason": "hold",
        "saturated": False,
    }  # fmt: skip
    settings = {
        "slo_itl_ms": 20.0, "slo_tpot_ms": None, "slo_ttft_ms": None, "slo_percentile": 95.0,
        "min_retained_mass": 0.75, "max_quality_loss": None,
    }  # fmt: skip
    made = {
        "decision": decision, "settings": settings, "controller": {"windowed_itl_ms": 18.24},
        "num_layers": 2, "num_experts": 64, "is_idle": False, "running": 12, "waiting": 3,
        "decode_steps": 100, "active_experts_sum": 2500.0, "retained_mass_sum": 90.0,
        "tiers": tiers, "shadow": {"rows": 0},
    }  # fmt: skip
    for name, value in values.items():
        holder = next(each for each in (decision, settings, made) if name in each)
        holder[name] = value
    return made


BEFORE = part(
    decode_steps=0,
    active_experts_sum=0.0,
    retained_mass_sum=0.0,
    tiers={
        "flexible": {"requests": 1, "decode_tokens": 0, "degraded_tokens": 0},
        "exact": {"requests": 1, "decode_tokens": 0, "degraded_tokens": 0},
    },
)


def shown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    return {line.label: line.text for line in watch.lines(before, after)}


def test_a_frame_tells_what_ran_between_two_readings() -> None:
    assert shown(BEFORE, part()) == {
        "ITL": "p95 18.2 ms, SLO p95 ITL 20 ms",
        "experts": "25.0 active, 40.0 expected uncapped, of 64 in a layer; cap 32.0",
        "requests": "12 running, 3 waiting; finished: 2 flexible, 0 exact",
        "share": "62% of the experts: the last caps still fit",
        "mass": "90.0% retained, limit 0.75; 25% of flexible tokens cut",
        "quality": "KL not measured yet; no limit",
        "state": "holds its limits (SLO p95 ITL 20 ms)",
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"is_idle": True, "saturated": True}, "idle: nothing runs or waits"),
        ({"reason": "saturated", "saturated": True}, "cannot hold SLO p95 ITL 20 ms at this"),
        ({"reason": "guard", "max_quality_loss": 0.01}, "within 0.01 nats a token: lower the load"),
        ({"reason": "failed"}, "the controller failed"),
        ({"reason": "blind"}, "steps cannot be read"),
        ({"reason": "outside"}, "time is lost outside the experts"),
        ({"reason": "override"}, "an operator fixed the cut"),
        ({"reason": "full", "slo_itl_ms": None}, "full quality: no SLO is set"),
    ],
)
def test_the_state_is_a_sentence(values: dict[str, Any], said: str) -> None:
    assert said in shown(BEFORE, part(**values))["state"]


def test_every_reason_has_words() -> None:
    assert set(watch.REASONS) == set(Reason)


def test_measured_quality_is_told() -> None:
    shadow = {"rows": 32, "kl_mean": 0.00123, "agreement": 0.96875}
    said = shown(BEFORE, part(shadow=shadow, max_quality_loss=0.01))["quality"]
    assert said == (
        "KL 1.23e-03 nats a token over 32 tokens, top token alike in 96.9%; limit 0.01 nats"
    )


def test_nothing_is_divided_by_no_steps() -> None:
    said = shown(part(), part(is_idle=True))
    assert said["experts"] == "none active of 64 in a layer"
    assert said["mass"] == "nothing decoded; limit 0.75"
    assert said["share"].startswith("last ")
    assert watch.lines(part(decision=None), part(decision=None))[0].text == "no step has run yet"


def test_a_server_that_started_anew_is_read_from_zero() -> None:
    text = watch.frame("http://host:1", [part()], [part(decode_steps=3)]).plain
    assert "none active" in text
    assert len(text.splitlines()) == 8


class Server(Connection):
    """Answers, is gone, answers, and the operator ends the watch."""

    answers: Iterator[Any] = iter(())

    def lynx_parts(self) -> list[dict[str, Any]]:
        answer = next(Server.answers)
        if isinstance(answer, BaseException):
            raise answer
        return [answer]


def test_a_server_that_goes_and_comes_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INTERVAL_S", 0.0)
    Server.answers = iter([BEFORE, ConnectionFailed("it is gone"), part(), KeyboardInterrupt()])
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt):
        watch.follow(Server("http://host:1"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("http://host:1") == 3
    assert text.index("it is gone") < text.rindex("12 running, 3 waiting")


def test_once_ends_with_1_where_nothing_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", "--once", "--url", "http://127.0.0.1:9"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
