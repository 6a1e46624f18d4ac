"""Decision log: the controller's inputs and decisions, one JSON object per line.

    {"lynx_log": 3, "slo": {...}, "num_layers": L, "num_experts": E, "top_k": K,
     "layer_offsets": [...], "config": {...}}
    {"n": 1, "call": "step", "with": {observation}, "decision": {...}}
    {"n": 2, "call": "plan", "with": {batch}, "decision": {...}}
    {"n": 3, "call": "set_slo", "with": {...}}          also set_min_retained_mass, override,
                                                        set_max_quality_loss, inherit

A reader refuses any other version. A background thread writes the lines, so a slow disk loses
lines and delays no step.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any, Final, Literal

from lynx_controller.config import ControllerConfig
from lynx_controller.controller import Controller
from lynx_controller.types import Batch, Decision, Observation, Slo

logger = logging.getLogger(__name__)

VERSION: Final = 3
MOST: Final = 65_536  # layers or experts that a log may claim
WAITING: Final = 4096  # lines that wait for the disk; more are dropped and counted


class Log:
    """Writes lines in the background; ends after `max_lines` (some 2 kB each at 48 layers)."""

    def __init__(self, path: Path, max_lines: int = 200_000) -> None:
        self.dropped = 0  # lines that are not in the file
        self._path, self._left = path, max_lines
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING)
        self._has_warned = False
        file = path.open("wb", buffering=0)  # a wrong path is the caller's mistake, now
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
            self._drop("the disk is too slow")

    def close(self, timeout_s: float = 10.0) -> None:
        """Wait for the lines written so far; later ones are lost."""
        self._left = 0
        if self._thread.is_alive():
            self._lines.put(None)
            self._thread.join(timeout_s)

    def _drain(self, file: FileIO) -> None:
        start = b""  # of the next line: ends a line that a full disk cut short
        with file:
            while (record := self._lines.get()) is not None:
                try:
                    line = start + json.dumps(record, default=plain).encode() + b"\n"
                    is_whole = file.write(line) == len(line)
                except (OSError, ValueError) as error:  # a full disk, a file that was closed
                    self._drop(error)
                    continue
                start = b"" if is_whole else b"\n"
                if not is_whole:
                    self._drop("the disk is full")

    def _drop(self, reason: object) -> None:
        self.dropped += 1
        if not self._has_warned:
            self._has_warned = True
            logger.warning("decision log %s loses lines: %s", self._path, reason)


def plain(value: object) -> object:
    """Observations and decisions as JSON, and anything else that an observation may hold."""
    try:
        return value.to_dict() if isinstance(value, Observation | Decision) else repr(value)[:200]
    except Exception as error:  # an observation may hold anything; `step` has answered already
        return {"unreadable": repr(error)[:200]}


class LoggedController(Controller):
    """A controller that logs every call, to a log of its own."""

    def __init__(
        self,
        log: Log,
        slo: Slo,
        num_layers: int,
        num_experts: int,
        top_k: int,
        config: ControllerConfig | None = None,
        layer_offsets: Sequence[float] | None = None,
    ) -> None:
        self._log = log
        self._number: int | None = None  # None: before the first line
        super().__init__(slo, num_layers, num_experts, top_k, config, layer_offsets)
        self._number = 0
        sizes = {"num_layers": num_layers, "num_experts": num_experts, "top_k": top_k}
        about = {"layer_offsets": layer_offsets, "config": asdict(self.config)}
        log.write({"lynx_log": VERSION, "slo": asdict(slo), **sizes, **about})

    def state(self) -> dict[str, Any]:
        """With the lines that the log has lost."""
        return {**super().state(), "log_dropped": self._log.dropped}

    def step(self, observation: Observation) -> Decision:
        decision = super().step(observation)
        self._note("step", observation, decision)
        return decision

    def plan(self, batch: Batch) -> Decision:
        decision = super().plan(batch)
        self._note("plan", batch.to_dict(), decision)
        return decision

    def set_slo(self, slo: Slo) -> None:
        super().set_slo(slo)
        if self._number is not None:
            self._note("set_slo", {"slo": asdict(slo)})

    def set_min_retained_mass(self, min_retained_mass: float) -> None:
        super().set_min_retained_mass(min_retained_mass)
        self._note("set_min_retained_mass", {"min_retained_mass": min_retained_mass})

    def set_max_quality_loss(self, max_quality_loss: float | None) -> None:
        super().set_max_quality_loss(max_quality_loss)
        self._note("set_max_quality_loss", {"max_quality_loss": max_quality_loss})

    def override(
        self,
        budget: int | Literal["full"] | None = None,
        demand: float | None = None,
        share: float | None = None,
    ) -> None:
        super().override(budget, demand, share)
        given = {"budget": budget, "demand": demand}
        self._note("override", given if share is None else {**given, "share": share})

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


def controller_of(header: str) -> Controller:
    """The controller as it was when the log began, from the log's first line.

    Raises:
        ValueError: the file is no decision log, or of another version.
    """
    try:
        record = json.loads(header)
        version = record["lynx_log"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("not a decision log: its first line has no lynx_log") from None
    if version != VERSION:
        raise ValueError(
            f"the decision log has version {version!r:.40}, this is version {VERSION}: "
            "replay it with the release that wrote it"
        )
    given = ("num_layers", "num_experts", "top_k", "layer_offsets")
    for name in given[:3]:
        if not isinstance(record.get(name), int) or record[name] > MOST:
            raise ValueError(f"not a decision log: {name} is {record.get(name)!r}"[:200])
    try:
        return Controller(
            slo=Slo(**record["slo"]),
            config=ControllerConfig(**record["config"]),
            **{name: record[name] for name in given},
        )
    except (LookupError, TypeError, AttributeError, ArithmeticError, MemoryError) as error:
        raise ValueError(f"not a decision log: its first line says {error!r:.200}") from error
