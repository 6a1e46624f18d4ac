"""The controller's vocabulary: what it is told, what it is asked for, what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, TypeAlias


class Phase(Enum):
    """What a step did. Set by the engine."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    VERIFY = "verify"
    IDLE = "idle"


class Reason(Enum):
    """Why a decision is what it is."""

    FULL = "full"  # full quality fits, or there is no SLO
    FEED_FORWARD = "feed_forward"  # the model says that another share fits the SLO better
    FEEDBACK = "feedback"  # the measured tail moved the target, not the model
    HOLD = "hold"  # the held share is inside the dead band
    QUEUE = "queue"  # requests wait for a place, and their TTFT takes faster steps than the gaps do
    SATURATED = "saturated"  # the SLO cannot be met at the floor, or nothing can be cut
    OUTSIDE = "outside"  # time lost outside the experts, which no cut could win back, was ignored
    GUARD = "guard"  # the SLO would take a deeper cut than the limit on quality allows
    FROZEN = "frozen"  # nothing to learn from this step: the previous decision stands
    BLIND = "blind"  # too many unusable steps in a row: full quality until one can be read again
    OVERRIDE = "override"  # an operator fixed the budget or the demand
    FAILED = "failed"  # the controller raised: full quality


Key: TypeAlias = tuple[Phase, int]
"""What is learned is learned per phase and size class."""


@dataclass(frozen=True, slots=True)
class Slo:
    """A promise to a class of requests; None: not promised.

    itl_ms: `percentile` % of a stream's inter-token gaps stay within it.
    tpot_ms: a request's time per output token, the mean of its gaps, stays within it.
    ttft_ms: a request's wait for a place among the running ones, which faster decoding shortens,
        is kept within it as far as the quality floor allows; prefill is not the controller's.
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
"""Of the gaps: a percentile, or None, their mean."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One finished step, as the engine saw it. Never validated here: `step` must take anything."""

    step: int  # the engine's step number, strictly increasing
    phase: Phase
    rows: int  # decode (or verify) rows, without padding
    size_class: int  # padded batch size; 0: the next power of two of rows
    step_ms: float  # duration of the step itself
    active_experts: Sequence[float]  # [L] experts read in each layer
    retained_mass: Sequence[float] = ()  # [L] share of top-k gate mass kept
    kv_tokens: int = 0
    itl_ms: float | None = None  # gap a stream saw since the previous decode; None: step_ms
    flexible_rows: int | None = None  # rows that may be cut; None: all
    queue: int | None = None  # requests that wait for a place; recorded, not used by the law
    queue_ms: float | None = None  # how long the oldest of them has waited; 0: none waits
    demand: float | None = None  # in force while the step ran; None: the controller's memory
    budget_applied: Sequence[int] | int | None = None  # in force while the step ran
    shadow_kl: float | None = None  # nats, KL(full || served), mean over flexible rows; if sampled
    shadow_agreement: float | None = None  # share of them whose top token is the full model's

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "phase": self.phase.value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Observation:
        return cls(**{**record, "phase": Phase(record["phase"])})


@dataclass(frozen=True, slots=True)
class Decision:
    """What the next steps are to run under, and the terms that made it."""

    budget: tuple[int, ...]  # [L] cap on active experts
    demand: float  # share of each flexible row's top-k mass that is insisted on; 1 unless fixed
    expected_active: tuple[float, ...]  # [L]
    reason: Reason
    saturated: bool
    predicted_ms: float  # expected step time; 0 before anything was learned
    share: float = 1.0  # of the experts that the step would use uncut, those that it may use
    target_ms: float = 0.0  # step time that was aimed for; 0 without an SLO
    feedback_ms: float = 0.0  # part of the target given to the measured tail (<= 0 as a rule)
    outside_ms: float = 0.0  # disturbance that was ignored
    guard_share: float = 0.0  # least share that the limit on quality allows; 0 without one
    predicted_kl: float = 0.0  # nats per token lost to the full model, with 95 % confidence

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reason": self.reason.value}

    def terms(self) -> dict[str, Any]:
        """All but what it is per layer."""
        told = self.to_dict()
        return {name: told[name] for name in told if name not in ("budget", "expected_active")}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Decision:
        lists = {name: tuple(record[name]) for name in ("budget", "expected_active")}
        return cls(**{**record, **lists, "reason": Reason(record["reason"])})
