"""Replay of a decision log, with the reason of every decision.

The controller is deterministic and has no clock, so the same calls give the same decisions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lynx_controller.controller import Controller
from lynx_controller.decide.slo_limits import SloLimits
from lynx_controller.log.decision_log import controller_of
from lynx_controller.types import Batch, Decision, Observation, Phase, Reason, Slo

BECAUSE: Final = {
    Reason.FULL: "full quality fits",
    Reason.FEED_FORWARD: "the cost model moved the share",
    Reason.FEEDBACK: "the measured tail moved the target, and the share with it",
    Reason.HOLD: "the held share is inside the dead band",
    Reason.QUEUE: "requests wait for a place: faster steps free one sooner",
    Reason.SATURATED: "the least share misses the SLO, or a cut would buy no time",
    Reason.OUTSIDE: "time lost outside the experts was ignored: no cut could win it back",
    Reason.GUARD: "the quality limit stops the cut that the SLO needs",
    Reason.FROZEN: "the step taught nothing: the previous decision stands",
    Reason.BLIND: "too many unusable steps in a row: full quality",
    Reason.OVERRIDE: "an operator fixed the budget or the demand",
    Reason.FAILED: "the controller failed: full quality",
}


@dataclass(frozen=True, slots=True)
class Replayed:
    """One call of the log, repeated."""

    number: int  # counts all calls; the log dropped the missing ones
    call: str
    given: dict[str, Any]
    recorded: Decision | None  # in the log
    decided: Decision | None  # by this version
    min_share_ms: float | None  # forecast at the least share; None before any cost is known
    full_ms: float | None  # forecast at full quality
    why: str

    @property
    def is_same(self) -> bool:
        """False where another version decided, or the log misses calls."""
        return self.recorded == self.decided


def replay(path: Path) -> Iterator[Replayed]:
    """Repeat every logged call, in order.

    Raises ValueError for a file that is no decision log of this version, and names the line of a
    record that is no call. A torn line, as a full disk leaves it, is a missing call.
    """
    with path.open(errors="replace") as lines:
        controller = controller_of(next(lines, ""))
        for number, line in enumerate(lines, start=2):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            try:
                again = _again(controller, record)
            except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
                raise ValueError(
                    f"line {number} is no call of a controller: {error!r}"[:300]
                ) from error
            yield again


def show(
    path: Path, write: Callable[[str], object] = print, step: int | None = None
) -> tuple[int, int]:
    """Explain the log's decisions, or only those of one engine step; calls and differences.

    Raises ValueError, as `replay` does, and for a step that the log does not have.
    """
    calls = differences = missed = shown = 0
    for each in replay(path):
        calls += 1
        differences += not each.is_same
        missed = each.number - calls
        if step is None or each.given.get("step") == step:
            shown += 1
            write(f"{each.number:>6} {each.why}")
    if step is not None and not shown:
        raise ValueError(f"the log has no step {step}")
    write(
        f"{calls} calls replayed, {differences} decided differently"
        + (f"; {missed} calls are missing from the log" if missed else "")
    )
    return calls, differences


def _again(controller: Controller, record: dict[str, Any]) -> Replayed:
    call, given, number = record["call"], record["with"], record["n"]
    if not isinstance(number, int) or not isinstance(given, dict):
        raise ValueError(f"call {number!r} with {given!r}"[:200])
    recorded = Decision.from_dict(record["decision"]) if "decision" in record else None
    decided, about = None, ", ".join(f"{name} {value}" for name, value in given.items())
    if call == "step":
        batch = given.get("batch") or {}
        before = controller.state()["share"]
        decided = controller.step(_observation(given))
        about = f"step {given.get('step')} {batch.get('phase')}, {batch.get('rows')} rows: "
        about += f"took {given.get('step_ms')} ms, gap {given.get('itl_ms')} ms; "
        about += f"share {before:.3f} -> {decided.share:.3f}"
    elif call == "plan":
        decided = controller.plan(Batch.from_dict(given))
        about = f"plan for {given['rows']} rows: share {decided.share:.3f}"
    elif call == "set_slo":
        controller.set_slo(Slo(**given["slo"]))
    elif call == "set_min_retained_mass":
        controller.set_min_retained_mass(**given)
    elif call == "set_max_quality_loss":
        controller.set_max_quality_loss(**given)
    elif call == "inherit":
        controller.inherit(**given)
    elif call == "override":
        controller.override(**given)
    else:
        raise ValueError(f"the log has an unknown call {call!r}"[:200])
    min_share_ms, full_ms = _reach(controller, given, decided)
    why = f"{call}: {about}" if decided is None else _explain(controller, decided, about)
    if decided is not None and min_share_ms is not None and full_ms is not None:
        why += f" [least share {min_share_ms:.2f} ms, full {full_ms:.2f} ms]"
    if recorded != decided:
        why += " (RECORDED DIFFERENTLY)"
    return Replayed(number, call, given, recorded, decided, min_share_ms, full_ms, why)


def _observation(given: dict[str, Any]) -> Observation:
    try:
        return Observation.from_dict(given)
    except (TypeError, ValueError, KeyError):  # the recorded call was no observation either
        return Observation(-1, Batch.of(0, Phase.IDLE), 0.0, ())


def _reach(
    controller: Controller, given: dict[str, Any], decided: Decision | None
) -> tuple[float | None, float | None]:
    """Only where the law made a forecast too, so that the replay stays exact."""
    if decided is None or decided.reason in (Reason.FROZEN, Reason.BLIND, Reason.FAILED):
        return None, None
    known = controller.reach_ms(Batch.from_dict(given.get("batch", given)))
    return known if known is not None else (None, None)


def _explain(controller: Controller, decided: Decision, about: str) -> str:
    why = f"{about}. {decided.reason.value.upper()}: {BECAUSE[decided.reason]}"
    if decided.target_ms:
        limits = [
            f"mean {limit_ms:g} ms" if each is None else f"p{each:g} {limit_ms:g} ms"
            for each, limit_ms in SloLimits.of(controller.slo).limits_ms.items()
        ]
        why += f". SLO {' and '.join(limits)} -> target {decided.target_ms:.2f} ms "
        why += f"(feedback {decided.feedback_ms:+.2f}), predicted {decided.predicted_ms:.2f} ms"
    if decided.outside_ms:
        why += f", {decided.outside_ms:.2f} ms of it not the experts'"
    if decided.guard_share:
        why += f". Quality limit {controller.config.max_quality_loss:g} nats -> share at least "
        why += f"{decided.guard_share:.3f}, predicted {decided.predicted_kl:.2g} nats"
    return why
