"""The controller's vocabulary: batch, observation, SLO, decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias


class Phase(Enum):
    """Kind of a step. Set by the engine."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    VERIFY = "verify"
    IDLE = "idle"


class Reason(Enum):
    """The rule that made a decision."""

    FULL = "full"  # full quality fits, or there is no SLO
    FEED_FORWARD = "feed_forward"  # the cost model moved the share
    FEEDBACK = "feedback"  # the measured tail moved the target, and the share with it
    HOLD = "hold"  # the held share is inside the dead band
    QUEUE = "queue"  # the wait for a place sets a lower step time than the gaps' SLO
    SATURATED = "saturated"  # the least share misses the SLO, or a cut would buy no time
    OUTSIDE = "outside"  # time lost outside the experts was ignored: no cut could win it back
    GUARD = "guard"  # the quality limit stops the cut that the SLO needs
    FROZEN = "frozen"  # the step taught nothing: the previous decision stands
    BLIND = "blind"  # too many unusable steps in a row: full quality
    OVERRIDE = "override"  # an operator fixed the budget or the demand
    FAILED = "failed"  # the controller raised an error: full quality


Key: TypeAlias = tuple[Phase, int]
"""Phase (decode or verify) and size class: state is learned per key."""


@dataclass(frozen=True)  # without slots: `key` is cached
class Batch:
    """The decode (or verify) rows of one step. `Batch.of` has defaults for two fields."""

    phase: Phase
    rows: int  # without padding
    flexible_rows: int  # rows whose experts may be cut
    size_class: int  # batch size after padding

    @classmethod
    def of(
        cls,
        rows: int,
        phase: Phase = Phase.DECODE,
        flexible_rows: int | None = None,
        size_class: int = 0,
    ) -> Batch:
        """None: all rows are flexible. Size class 0: the next power of two of `rows`."""
        rows, size_class = int(rows), int(size_class)
        flexible = rows if flexible_rows is None else min(max(flexible_rows, 0), rows)
        if size_class <= 0:
            size_class = 1 << (rows - 1).bit_length()
        return cls(phase, rows, flexible, size_class)

    def in_range(self) -> Batch:
        """The same batch with every field made plausible."""
        return Batch.of(self.rows, self.phase, self.flexible_rows, self.size_class)

    @cached_property
    def key(self) -> Key:
        """Decode rows of a mixed step belong with those of decode steps."""
        phase = Phase.VERIFY if self.phase is Phase.VERIFY else Phase.DECODE
        return phase, self.size_class

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "phase": self.phase.value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Batch:
        return cls(**{**record, "phase": Phase(record["phase"])})


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency limits; None: no limit.

    itl_ms: `percentile` % of a stream's inter-token gaps stay within it.
    tpot_ms: a request's time per output token, the mean of its gaps, stays within it.
    ttft_ms: a request's wait for a place among the running ones stays within it, as far as
        faster decode steps can achieve that. Prefill time is outside the controller's reach.
    """

    itl_ms: float | None = None
    percentile: float = 95.0
    tpot_ms: float | None = None
    ttft_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("itl_ms", "tpot_ms", "ttft_ms"):
            limit_ms = getattr(self, name)
            if limit_ms is not None and not 0.0 < limit_ms < 1e6:
                raise ValueError(f"{name} must be in (0, 1e6) ms or None, got {limit_ms!r}")
        if not 50.0 <= self.percentile <= 99.9:
            raise ValueError(f"percentile must be in [50, 99.9], got {self.percentile!r}")


Statistic: TypeAlias = float | None
"""Statistic of the gaps that a limit is for: a percentile, or None for their mean."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Measurements of one finished step. `Controller.step` takes any values and checks them."""

    step: int  # the engine's step number, strictly increasing
    batch: Batch
    step_ms: float  # duration of the step itself
    active_experts: Sequence[float]  # [L] experts read in each layer
    retained_mass: Sequence[float] = ()  # [L] share of top-k gate mass kept
    kv_tokens: int = 0
    itl_ms: float | None = None  # gap a stream saw since the previous decode; None: step_ms
    queue: int | None = None  # requests that wait for a place; recorded, not used by the law
    queue_ms: float | None = None  # wait of the oldest of them; 0: none waits
    demand: float | None = None  # in force while the step ran; None: the controller's memory
    budget_applied: Sequence[int] | int | None = None  # in force while the step ran
    shadow_kl: float | None = None  # nats, KL(full || served), mean over flexible rows; if sampled
    shadow_agreement: float | None = None  # share of them whose top token is the full model's

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "batch": self.batch.to_dict()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Observation:
        return cls(**{**record, "batch": Batch.from_dict(record["batch"])})


@dataclass(frozen=True, slots=True)
class Decision:
    """Budget and demand of the next steps, and the terms that made them."""

    budget: tuple[int, ...]  # [L] cap on active experts
    demand: float  # share of a flexible row's top-k mass that its experts must hold; 1 unless fixed
    expected_active: tuple[float, ...]  # [L]
    reason: Reason
    saturated: bool
    predicted_ms: float  # expected step time; 0 before anything was learned
    share: float = 1.0  # of the uncapped active experts, those that the step may use
    target_ms: float = 0.0  # set point of the step time; 0 without an SLO
    feedback_ms: float = 0.0  # part of the target given to the measured tail (<= 0 as a rule)
    outside_ms: float = 0.0  # disturbance that was ignored
    guard_share: float = 0.0  # least share that the limit on quality allows; 0 without one
    predicted_kl: float = 0.0  # nats per token lost to the full model, with 95 % confidence

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reason": self.reason.value}

    def terms(self) -> dict[str, Any]:
        """All fields but those per layer."""
        record = self.to_dict()
        return {name: record[name] for name in record if name not in ("budget", "expected_active")}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Decision:
        lists = {name: tuple(record[name]) for name in ("budget", "expected_active")}
        return cls(**{**record, **lists, "reason": Reason(record["reason"])})
