"""The decision log: what the controller was told and what it answered, one JSON object per line.

    {"lynx_log": 1, "slo": [{...}], "num_layers": L, "num_experts": E, "top_k": K, "config": {...}}
    {"n": 1, "call": "step", "with": {observation}, "decision": {...}}
    {"n": 2, "call": "plan", "with": {"rows": 16, ...}, "decision": {...}}
    {"n": 3, "call": "set_slo", "with": {...}}          also set_min_demand, override,
                                                        set_max_quality_loss, inherit

The controller has no clock and no chance in it, so the same calls give the same decisions:
`replay` makes them again and says why each was made. Version 1; a reader refuses what it does not
know. Lines are written by a thread of their own: a slow disk costs lines, never a step.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from .config import ControllerConfig
from .controller import Controller
from .types import Decision, Observation, Phase, Reason, Slo, promises_of

VERSION: Final = 1
WAITING: Final = 4096  # lines that may wait for the disk; more are dropped and counted

BECAUSE: Final = {
    Reason.FULL: "full quality fits",
    Reason.FEED_FORWARD: "the cost model moved the demand",
    Reason.TRIM: "the measured tail moved the target, and the demand with it",
    Reason.HOLD: "the held demand is within the dead band: nothing moves",
    Reason.QUEUE: "requests wait for a place: faster steps free one sooner",
    Reason.SATURATED: "the SLO cannot be met at the floor, or no cut would buy time",
    Reason.OUTSIDE: "time lost outside the experts, which no cut wins back, was ignored",
    Reason.GUARD: "the SLO would take a deeper cut than the limit on quality allows",
    Reason.FROZEN: "nothing to learn from this step: the decision before it stands",
    Reason.BLIND: "too many unusable steps in a row: full quality",
    Reason.OVERRIDE: "an operator fixed it",
    Reason.FAILED: "the controller failed: full quality",
}


class Log:
    """Writes lines in the background; ends after `max_lines` (some 2 kB each at 48 layers)."""

    def __init__(self, path: Path, max_lines: int = 200_000) -> None:
        self.dropped = 0
        self._left = max_lines
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING)
        file = path.open("w")  # a wrong path is the caller's mistake, now and not later
        self._thread = threading.Thread(
            target=self._drain, args=(file,), name="lynx-log", daemon=True
        )
        self._thread.start()

    def write(self, record: dict[str, Any]) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float = 10.0) -> None:
        """Wait for what was written; lines after this are lost."""
        self._left = 0
        if self._thread.is_alive():
            self._lines.put(None)
            self._thread.join(timeout_s)

    def _drain(self, file: TextIO) -> None:
        with file:
            while (record := self._lines.get()) is not None:
                try:
                    file.write(json.dumps(record, default=plain) + "\n")
                    if self._lines.empty():
                        file.flush()
                except (OSError, ValueError):  # a full disk, a file that was closed
                    self.dropped += 1


def plain(value: object) -> object:
    """What JSON does not know: observations and decisions, and whatever an observation holds."""
    try:
        return value.to_dict() if isinstance(value, Observation | Decision) else repr(value)[:200]
    except Exception as error:  # an observation may hold anything; `step` has answered already
        return {"unreadable": repr(error)[:200]}


def plain_slos(controller: Controller) -> list[dict[str, Any]]:
    return [asdict(slo) for slo in controller.slos]


def read_slos(record: Sequence[dict[str, Any]]) -> list[Slo]:
    return [Slo(**each) for each in record]


class LoggedController(Controller):
    """A controller that logs every call. `log` may be shared with nobody."""

    def __init__(
        self,
        log: Log,
        slo: Slo | Sequence[Slo],
        num_layers: int,
        num_experts: int,
        top_k: int,
        config: ControllerConfig | None = None,
    ) -> None:
        self._log = log
        self._number: int | None = None  # None: before the first line
        super().__init__(slo, num_layers, num_experts, top_k, config)
        self._number = 0
        sizes = {"num_layers": num_layers, "num_experts": num_experts, "top_k": top_k}
        log.write(
            {"lynx_log": VERSION, "slo": plain_slos(self), **sizes, "config": asdict(self.config)}
        )

    def step(self, observation: Observation) -> Decision:
        decision = super().step(observation)
        self._note("step", observation, decision)
        return decision

    def plan(
        self,
        rows: int,
        slot: int = 0,
        phase: Phase = Phase.DECODE,
        flexible_rows: int | None = None,
    ) -> Decision:
        decision = super().plan(rows, slot, phase, flexible_rows)
        given = {"rows": rows, "slot": slot, "phase": phase.value, "flexible_rows": flexible_rows}
        self._note("plan", given, decision)
        return decision

    def set_slo(self, slo: Slo | Sequence[Slo]) -> None:
        super().set_slo(slo)
        if self._number is not None:
            self._note("set_slo", {"slo": plain_slos(self)})

    def set_min_demand(self, min_demand: float) -> None:
        super().set_min_demand(min_demand)
        self._note("set_min_demand", {"min_demand": min_demand})

    def set_max_quality_loss(self, max_quality_loss: float | None) -> None:
        super().set_max_quality_loss(max_quality_loss)
        self._note("set_max_quality_loss", {"max_quality_loss": max_quality_loss})

    def override(
        self, budget: int | Literal["full"] | None = None, demand: float | None = None
    ) -> None:
        super().override(budget, demand)
        self._note("override", {"budget": budget, "demand": demand})

    def inherit(self, base_ms: float, row_ms: float, slope_ms: float) -> None:
        super().inherit(base_ms, row_ms, slope_ms)
        self._note("inherit", {"base_ms": base_ms, "row_ms": row_ms, "slope_ms": slope_ms})

    def _note(
        self, call: str, given: Observation | dict[str, Any], decision: Decision | None = None
    ) -> None:
        self._number = (self._number or 0) + 1
        record: dict[str, Any] = {"n": self._number, "call": call, "with": given}
        if decision is not None:
            record["decision"] = decision
        self._log.write(record)  # turned into text by the log's thread


@dataclass(frozen=True, slots=True)
class Replayed:
    """One call, made again."""

    number: int  # counts all calls; a number that is missing was dropped
    call: str
    given: dict[str, Any]
    recorded: Decision | None  # what was answered then
    decided: Decision | None  # what is answered now
    floor_ms: float | None  # forecast at the quality floor; None before anything is known
    full_ms: float | None  # forecast at full quality
    why: str

    @property
    def is_same(self) -> bool:
        """False: another version, or calls that the log misses."""
        return self.recorded == self.decided


def replay(path: Path) -> Iterator[Replayed]:
    """Make every logged call again, in order.

    Raises ValueError for a file that is not a log of this version. Stops at a torn last line.
    """
    with path.open() as lines:
        controller = controller_of(next(lines, ""))
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                return
            yield _again(controller, record)


def show(
    path: Path, write: Callable[[str], object] = print, step: int | None = None
) -> tuple[int, int]:
    """Explain the log's decisions, or only those of one engine step; calls and differences."""
    calls = differences = missed = 0
    for each in replay(path):
        calls += 1
        differences += not each.is_same
        missed = each.number - calls
        if step is None or each.given.get("step") == step:
            write(f"{each.number:>6} {each.why}")
    write(
        f"{calls} calls replayed, {differences} decided otherwise than recorded"
        + (f"; {missed} calls are missing from the log" if missed else "")
    )
    return calls, differences


def controller_of(header: str) -> Controller:
    """As it was when the log began, from its first line; ValueError for another kind of file."""
    try:
        record = json.loads(header)
        version = record["lynx_log"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("not a decision log: its first line has no lynx_log") from None
    if version != VERSION:
        raise ValueError(f"the log has version {version!r}; this reads version {VERSION}")
    sizes = {name: record[name] for name in ("num_layers", "num_experts", "top_k")}
    return Controller(
        slo=read_slos(record["slo"]), config=ControllerConfig(**record["config"]), **sizes
    )


def _again(controller: Controller, record: dict[str, Any]) -> Replayed:
    call, given = record["call"], record["with"]
    recorded = Decision.from_dict(record["decision"]) if "decision" in record else None
    decided, about = None, ", ".join(f"{name} {value}" for name, value in given.items())
    rows = given.get("rows")
    if call == "step":
        before = controller.state()["demand"]
        decided = controller.step(_observation(given))
        about = f"step {given.get('step')} {given.get('phase')}, {rows} rows: "
        about += f"took {given.get('step_ms')} ms, gap {given.get('itl_ms')} ms; "
        about += f"demand {before:.3f} -> {decided.demand:.3f}"
    elif call == "plan":
        decided = controller.plan(**{**given, "phase": Phase(given["phase"])})
        about = f"plan for {rows} rows: demand {decided.demand:.3f}"
    elif call == "set_slo":
        controller.set_slo(read_slos(given["slo"]))
    elif call == "set_min_demand":
        controller.set_min_demand(**given)
    elif call == "set_max_quality_loss":
        controller.set_max_quality_loss(**given)
    elif call == "inherit":
        controller.inherit(**given)
    elif call == "override":
        controller.override(**given)
    else:
        raise ValueError(f"the log has an unknown call {call!r}")
    floor_ms, full_ms = _reach(controller, given, decided)
    why = f"{call}: {about}" if decided is None else _explain(controller, decided, about)
    if decided is not None and floor_ms is not None and full_ms is not None:
        why += f" [floor {floor_ms:.2f} ms, full {full_ms:.2f} ms]"
    if recorded != decided:
        why += " (RECORDED OTHERWISE)"
    return Replayed(record["n"], call, given, recorded, decided, floor_ms, full_ms, why)


def _observation(given: dict[str, Any]) -> Observation:
    try:
        return Observation.from_dict(given)
    except (TypeError, ValueError, KeyError):  # it was no observation then either
        return Observation(-1, Phase.IDLE, 0, 0, 0.0, ())


def _reach(
    controller: Controller, given: dict[str, Any], decided: Decision | None
) -> tuple[float | None, float | None]:
    """What was possible; only asked where the law looked too, so that replaying stays exact."""
    if decided is None or decided.reason in (Reason.FROZEN, Reason.BLIND, Reason.FAILED):
        return None, None
    known = controller.reach_ms(given["rows"], given["slot"], Phase(given["phase"]))
    return known if known is not None else (None, None)


def _explain(controller: Controller, decided: Decision, about: str) -> str:
    why = f"{about}. {decided.reason.value.upper()}: {BECAUSE[decided.reason]}"
    if decided.target_ms:
        promised = [
            f"mean {limit_ms:g} ms" if each is None else f"p{each:g} {limit_ms:g} ms"
            for each, limit_ms in promises_of(controller.slos).items()
        ]
        why += f". SLO {' and '.join(promised)} -> target {decided.target_ms:.2f} ms "
        why += f"(trim {decided.trim_ms:+.2f}), predicted {decided.predicted_ms:.2f} ms"
    if decided.outside_ms:
        why += f", {decided.outside_ms:.2f} ms of it not the experts'"
    if decided.guard_demand:
        why += f". Quality limit {controller.config.max_quality_loss:g} nats -> demand at least "
        why += f"{decided.guard_demand:.3f}, predicted {decided.predicted_kl:.2g} nats"
    return why
