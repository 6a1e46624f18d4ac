"""The controller: holds the state, and turns one observation into one decision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from typing import Any, Final, Literal

import numpy as np

from .admission import Admission
from .config import ControllerConfig
from .cost import Inherited
from .estimator import Batch, Estimator
from .forecast import Forecast
from .gate import Gate
from .history import History
from .law import Move, Situation, decide
from .override import Override
from .quality import Quality
from .types import Decision, Key, Observation, Phase, Promises, Reason, Slo, promises_of

PROBE: Final = 10  # saturated decisions until a slow base is taken for a disturbance


@dataclass(slots=True)
class Hold:
    """What the law remembers of one phase and slot."""

    demand: float = 1.0
    tail: float = 0.0
    floored: int = 0  # saturated decisions in a row


class Controller:
    """Turns a latency SLO into a demand and a cap per layer, every decode step.

    `step` never raises and always answers in range. One instance per engine; not thread-safe.
    """

    def __init__(
        self,
        slo: Slo | Sequence[Slo],
        num_layers: int,
        num_experts: int,
        top_k: int,
        config: ControllerConfig | None = None,
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers!r}")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be in [1, {num_experts}], got {top_k!r}")
        self.slos: tuple[Slo, ...] = ()
        self.config = config if config is not None else ControllerConfig()
        self.num_layers, self.num_experts, self.top_k = num_layers, num_experts, top_k
        self._estimator = self._new_estimator()
        self._admission = Admission()
        self._quality = Quality(self.config.prior_kl)
        self._holds: dict[Key, Hold] = {}
        self._override: Override | None = None
        self._handing_over = False
        self._is_ignoring = False
        self._ignored = 0  # gaps in the window that no cut could pay for
        self._gate = Gate(self.config.max_step_ms)
        full = (num_experts,) * num_layers
        self._history = History(full, self.config.lag_steps)
        self._counts: Counter[str] = Counter()
        self._failure: str | None = None
        self._decision = self._full(Reason.FULL)
        self._promises: Promises = {}
        self.set_slo(slo)

    @property
    def slo(self) -> Slo:
        """The first class's."""
        return self.slos[0]

    def step(self, observation: Observation) -> Decision:
        """Learn from one finished step and decide for the ones to come."""
        try:
            decision = self._step(observation)
        except Exception as error:  # the engine must go on: full quality, counted in state()
            self._failure = repr(error)[:200]
            decision = self._full(Reason.FAILED)
        self._counts[decision.reason.value] += 1
        if decision.reason is not Reason.FROZEN and self._gate.last_step is not None:
            self._history.remember(self._gate.last_step, decision)
        self._decision = decision
        return decision

    def plan(
        self,
        rows: int,
        slot: int = 0,
        phase: Phase = Phase.DECODE,
        flexible_rows: int | None = None,
    ) -> Decision:
        """Decide for a batch that is known before it runs; learns nothing.

        Saves a load step its lag. Steps run under a plan must report `demand` in their observation.
        """
        try:
            return self._decide(self._batch(phase, rows, slot, flexible_rows))
        except Exception as error:  # as in step
            self._failure = repr(error)[:200]
            return self._full(Reason.FAILED)

    def reach_ms(
        self, rows: int, slot: int = 0, phase: Phase = Phase.DECODE
    ) -> tuple[float, float] | None:
        """Forecast in ms at the quality floor and at full quality; None before anything is known.

        For a batch that was decided for: learns nothing, moves nothing.
        """
        forecast = self._forecast(self._batch(phase, rows, slot, None))
        if forecast is None:
            return None
        return forecast.ms(self.config.min_demand), forecast.ms(1.0)

    def set_slo(self, slo: Slo | Sequence[Slo]) -> None:
        """One promise, or one per class of requests: they share the steps, the strictest rules."""
        slos = (slo,) if isinstance(slo, Slo) else tuple(slo)
        if not slos:
            raise ValueError("at least one Slo is needed; Slo() promises nothing")
        self.slos, self._promises = slos, promises_of(slos)
        self._ttft_ms = min((slo.ttft_ms for slo in slos if slo.ttft_ms is not None), default=None)
        tails = self._estimator.tails
        self._estimator.tails = {each: tails[each] for each in tails if each in self._promises}

    def set_min_demand(self, min_demand: float) -> None:
        self.config = replace(self.config, min_demand=min_demand)

    def set_max_quality_loss(self, max_quality_loss: float | None) -> None:
        """Limit the mean KL to the full model, in nats per token; None: only the floor limits."""
        self.config = replace(self.config, max_quality_loss=max_quality_loss)

    def override(
        self, budget: int | Literal["full"] | None = None, demand: float | None = None
    ) -> None:
        """Fix the cap, the demand or both; with neither, hand back to the law without a jump.

        Under an SLO a cap alone leaves the demand to the law, which then works below the cap.
        """
        if budget is None and demand is None:
            self._handing_over = self._override is not None
            self._override = None
            return
        self._override = Override.make(budget, demand, self.num_experts)

    def inherit(self, base_ms: float, row_ms: float, slope_ms: float) -> None:
        """Start from what other replicas found: ms = base + row * rows + slope * sum of T."""
        self._estimator.cost.inherit(Inherited(base_ms, row_ms, slope_ms))

    def state(self) -> dict[str, Any]:
        """For telemetry and logs: plain numbers, strings and dicts."""
        estimator, decision = self._estimator, self._decision
        cost = estimator.cost
        return {
            "slo_ms": self.slo.itl_ms,
            "percentile": self.slo.percentile,
            "tpot_ms": self.slo.tpot_ms,
            "ttft_ms": self.slo.ttft_ms,
            "queue_ms": self._admission.wait_ms,
            "min_demand": self.config.min_demand,
            "max_quality_loss": self.config.max_quality_loss,
            "guard_demand": decision.guard_demand,
            "predicted_kl": decision.predicted_kl,
            "kl_gain": self._quality.gain,
            "kl_gain_upper": self._quality.upper,
            "shadow_rows": self._quality.rows,
            "shadow_agreement": self._quality.agreement,
            "demand": decision.demand,
            "reason": decision.reason.value,
            "saturated": decision.saturated,
            "predicted_ms": decision.predicted_ms,
            "target_ms": decision.target_ms,
            "trim_ms": decision.trim_ms,
            "outside_ms": decision.outside_ms,
            "slope_ms": cost.slope_ms,
            "row_ms": cost.row_ms,
            "noise": cost.sigma,
            "shifts": cost.shifts,
            "ignored_gaps": self._ignored,
            "retained_mass": estimator.retained,
            "windowed_itl_ms": estimator.window.gap_ms(self.slo.percentile),
            "bases_ms": {
                f"{phase.value}/{slot}": cost.base_ms((phase, slot), hold_rows)
                for (phase, slot), hold_rows in self._known_rows().items()
            },
            "override": None if self._override is None else asdict(self._override),
            "steps": sum(self._counts.values()),
            "counts": dict(self._counts),
            "failure": self._failure,
        }

    def _known_rows(self) -> dict[Key, float]:
        slots = self._estimator.cost.slots
        return {key: slot.mean_rows for key, slot in slots.items() if slot.samples}

    def _step(self, seen: Observation) -> Decision:
        if not self._gate.admits(seen):
            if self._gate.is_blind and self._override is None:
                return self._full(Reason.BLIND)
            return replace(self._decision, reason=Reason.FROZEN)
        batch = self._batch(seen.phase, seen.rows, seen.slot, seen.flexible_rows)
        gap_ms = seen.step_ms
        if seen.itl_ms is not None and 0.0 < seen.itl_ms <= self.config.max_step_ms:
            gap_ms = seen.itl_ms
        applied = self._history.applied(seen)
        active = self._active(seen)
        if seen.phase is Phase.MIXED:
            self._estimator.learn_gap(batch, applied, gap_ms)
        elif active is not None:
            self._estimator.learn(batch, applied, active, seen.step_ms, gap_ms)
        self._estimator.watch_mass(seen.retained_mass)
        if seen.phase is not Phase.MIXED and applied.is_certain:
            self._quality.learn(
                batch.key,
                batch.flexible,
                applied.demand,
                seen.retained_mass,
                seen.shadow_kl,
                seen.shadow_agreement,
            )
        if seen.phase is not Phase.MIXED:
            self._admission.watch(seen.queue_ms)
        self._track_tail(batch)
        return self._decide(batch)

    def _batch(self, phase: Phase, rows: int, slot: int, flexible: int | None) -> Batch:
        kind = Phase.VERIFY if phase is Phase.VERIFY else Phase.DECODE
        rows = int(rows)
        slot = int(slot) if slot > 0 else 1 << (rows - 1).bit_length()
        flexible = rows if flexible is None else min(max(flexible, 0), rows)
        return Batch((kind, slot), rows, flexible)

    def _active(self, seen: Observation) -> list[float] | None:
        """Active experts per layer, or None where the step did not report them."""
        active = [float(count) for count in seen.active_experts]
        if len(active) != self.num_layers or not sum(active) > 0.0:  # NaN fails too
            return None
        return active if min(active) >= 0.0 and max(active) <= self.num_experts else None

    def _decide(self, batch: Batch) -> Decision:
        hold = self._holds.setdefault(batch.key, Hold())
        forecast = self._forecast(batch)
        fixed = self._override
        if fixed is not None:
            if fixed.demand is not None or forecast is None or not self._is_promising:
                return self._overridden(forecast, hold, fixed)
            forecast = forecast.capped(float((fixed.cap or self.num_experts) * self.num_layers))
        if forecast is None:
            return self._full(Reason.FULL)
        slo_ms, tail, _ = self._binding()
        queue_ms = self._admission.limit_ms(self._ttft_ms, forecast.ms(1.0))
        is_queueing = queue_ms < slo_ms / max(1.0 + tail, 0.5)
        if is_queueing:
            slo_ms, tail = queue_ms, 0.0
        if math.isinf(slo_ms):
            hold.demand = 1.0
            return self._full(Reason.FULL, forecast)
        situation = Situation(
            forecast,
            slo_ms=slo_ms,
            tail=tail,
            held_tail=hold.tail,
            excess_ms=0.0 if is_queueing else self._excess_ms(batch, forecast, hold),
            held=hold.demand,
            guard=self._guard(batch, hold),
        )
        move = decide(situation, self.config)
        if is_queueing and not move.saturated and move.demand < 1.0:
            move = replace(move, reason=Reason.QUEUE)
        if self._handing_over:
            move = self._hand_over(move, hold)
        if move.saturated:
            hold.floored += 1
        elif move.reason is not Reason.OUTSIDE:
            hold.floored = 0
        if move.demand != hold.demand:
            hold.demand, hold.tail = move.demand, situation.tail
        return self._settle(move, situation, batch.key)

    @property
    def _is_promising(self) -> bool:
        return bool(self._promises) or self._ttft_ms is not None

    def _guard(self, batch: Batch, hold: Hold) -> float:
        """The least demand that the limit on quality allows; a new limit walks up to it."""
        limit = self.config.max_quality_loss
        if limit is None:
            return 0.0
        wanted = self._quality.demand_for(batch.key, limit)
        return min(wanted, hold.demand + self.config.handover, 1.0)

    def _binding(self) -> tuple[float, float, float | None]:
        """The promise that leaves a step the least time: limit, trim, statistic; inf: none."""
        tails = self._estimator.tails
        found = [
            (limit_ms / max(1.0 + tails.get(each, 0.0), 0.5), limit_ms, tails.get(each, 0.0), each)
            for each, limit_ms in self._promises.items()
        ]
        return min(found, key=itemgetter(0), default=(math.inf, math.inf, 0.0, None))[1:]

    def _track_tail(self, batch: Batch) -> None:
        forecast = self._forecast(batch)
        if forecast is None or not self._promises:
            return
        hold = self._holds.setdefault(batch.key, Hold())
        floor_ms = forecast.ms(max(self.config.min_demand, self._guard(batch, hold)))
        own_ms = forecast.ms(hold.demand)
        ignored = {}
        for statistic, limit_ms in self._promises.items():
            room_ms = max(0.0, limit_ms * (1.0 - self.config.margin) - floor_ms)
            payable_ms = room_ms * (0.95 if self._is_ignoring else 1.05)
            ignored[statistic] = self._estimator.track_tail(statistic, own_ms, payable_ms)
        statistic = self._binding()[2]
        self._ignored = ignored[statistic]
        allowed = 0.05 if statistic is None else 1.0 - statistic / 100.0
        self._is_ignoring = self._ignored / self.config.window_steps > allowed

    def _forecast(self, batch: Batch) -> Forecast | None:
        forecast = self._estimator.forecast(batch)
        if forecast is not None and not math.isfinite(forecast.ms(1.0)):
            self._estimator = self._new_estimator()
            raise RuntimeError("the model diverged; it starts anew")
        return forecast

    def _new_estimator(self) -> Estimator:
        return Estimator(self.config, self.num_layers, self.num_experts, self.top_k)

    def _excess_ms(self, batch: Batch, forecast: Forecast, hold: Hold) -> float:
        """The base's disturbance, once it cannot be mistaken for dearer experts.

        Either it is beyond what experts could ever explain, or the floor was tried and did not pay.
        """
        excess_ms = self._estimator.cost.excess_ms(batch.key)
        experts_ms = forecast.ms(1.0) - forecast.base_ms
        return excess_ms if excess_ms > 2.0 * experts_ms or hold.floored >= PROBE else 0.0

    def _hand_over(self, move: Move, hold: Hold) -> Move:
        """After an override: walk from its demand to the law's instead of jumping."""
        step = self.config.handover
        if abs(move.demand - hold.demand) <= step:
            self._handing_over = False
            return move
        demand = hold.demand + math.copysign(step, move.demand - hold.demand)
        return replace(move, demand=demand)

    def _overridden(self, forecast: Forecast | None, hold: Hold, fixed: Override) -> Decision:
        demand = 1.0 if fixed.demand is None else fixed.demand
        cap = self.num_experts if fixed.cap is None else fixed.cap
        full = self._full(Reason.OVERRIDE, forecast)
        decision = replace(full, demand=demand, budget=(cap,) * self.num_layers)
        hold.demand = demand
        if forecast is None:
            return decision
        active = min(forecast.active(demand), float(cap * self.num_layers))
        hold.demand = min(demand, forecast.demand_of(active))  # where the law will take over
        return replace(
            decision,
            expected_active=self._expected(active),
            predicted_ms=forecast.base_ms + forecast.slope_ms * active,
        )

    def _expected(self, active: float) -> tuple[float, ...]:
        """Active experts per layer, from their sum."""
        layers = np.minimum(self._estimator.layer_share * active, self.num_experts)
        return tuple(layers.tolist())

    def _settle(self, move: Move, situation: Situation, key: Key) -> Decision:
        """The move as a decision: expected active experts and the cap above them, per layer."""
        forecast = situation.forecast
        active = forecast.active(move.demand)
        expected = self._expected(active)
        if move.demand >= 1.0:
            budget = self._history.full
        else:
            cap = np.ceil(self.config.cap_slack * np.array(expected))
            limit = np.minimum(np.maximum(cap, self.top_k), self.num_experts)
            budget = tuple(limit.astype(int).tolist())
        if self._override is not None and self._override.cap is not None:
            budget = tuple(min(each, self._override.cap) for each in budget)
        return Decision(
            budget=budget,
            demand=move.demand,
            expected_active=expected,
            reason=Reason.OUTSIDE if self._is_ignoring and not move.saturated else move.reason,
            saturated=move.saturated,
            predicted_ms=forecast.base_ms + forecast.slope_ms * active,
            target_ms=move.target_ms,
            trim_ms=move.target_ms - situation.slo_ms * (1.0 - self.config.margin),
            outside_ms=situation.excess_ms,
            guard_demand=situation.guard,
            predicted_kl=self._quality.kl_at(key, move.demand),
        )

    def _full(self, reason: Reason, forecast: Forecast | None = None) -> Decision:
        active = float(self.num_experts * self.num_layers)
        predicted_ms = 0.0
        if forecast is not None:
            active, predicted_ms = forecast.active(1.0), forecast.ms(1.0)
        return Decision(
            budget=self._history.full,
            demand=1.0,
            expected_active=self._expected(active),
            reason=reason,
            saturated=False,
            predicted_ms=predicted_ms,
        )
