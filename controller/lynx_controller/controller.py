"""The controller: learns from one observation and answers with one decision, the budget in it.

gate        is the step worth reading?                         gate
learn       cost, uncapped active experts, quality, feedback   estimator, quality, feedback
decide      forecast + the binding limit -> law -> budget      slo_limits, law, held, budget
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from lynx_controller.batch import Batch
from lynx_controller.config import ControllerConfig
from lynx_controller.decide.budget import Budget
from lynx_controller.decide.feedback import Feedback
from lynx_controller.decide.held import HeldShare
from lynx_controller.decide.law import Situation, decide
from lynx_controller.decide.override import Override
from lynx_controller.decide.queue_pressure import QueuePressure
from lynx_controller.decide.slo_limits import SloLimits
from lynx_controller.forecast import Forecast
from lynx_controller.learn.cost import Inherited
from lynx_controller.learn.estimator import Estimator
from lynx_controller.learn.gate import Gate
from lynx_controller.learn.history import History
from lynx_controller.learn.quality import Quality
from lynx_controller.types import Decision, Key, Observation, Phase, Reason, Slo


class Controller:
    """Turns a latency SLO into a cap on each layer's active experts, every decode step.

    `step` never raises and always answers in range. One instance per engine; not thread-safe.
    """

    def __init__(
        self,
        slo: Slo | Sequence[Slo],
        num_layers: int,
        num_experts: int,
        top_k: int,
        config: ControllerConfig | None = None,
        layer_offsets: Sequence[float] | None = None,
    ) -> None:
        """`layer_offsets` [L]: by how much a layer's share of its uncapped active experts differs
        from the mean share, at shares of a half and below (`lynx-sglang calibrate`);
        None: not at all.
        """
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers!r}")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be in [1, {num_experts}], got {top_k!r}")
        self.config = config if config is not None else ControllerConfig()
        self._budget = Budget.of(num_layers, num_experts, top_k, layer_offsets)
        self.num_layers, self.num_experts, self.top_k = num_layers, num_experts, top_k
        self._gate = Gate(self.config.max_step_ms)
        self._estimator = self._new_estimator()
        self._feedback = Feedback(self.config)
        self._quality = Quality(self.config.prior_kl)
        self._queue = QueuePressure()
        self._history = History(self._budget.full_caps, self.config.lag_steps)
        self._holds: dict[Key, HeldShare] = {}
        self._override: Override | None = None
        self._is_handing_over = False
        self._counts: Counter[str] = Counter()
        self._failure: str | None = None
        self._decision = self._full(Reason.FULL)
        self.set_slo(slo)

    @property
    def slos(self) -> tuple[Slo, ...]:
        """One per class of requests."""
        return self._limits.slos

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
        size_class: int = 0,
        phase: Phase = Phase.DECODE,
        flexible_rows: int | None = None,
    ) -> Decision:
        """Decide for a batch that is known before it runs; learns nothing.

        Saves a load step its lag. Steps run under a plan must report `budget_applied`.
        An unreadable step leaves the plan in force.
        """
        try:
            batch = Batch.of(phase, rows, size_class, flexible_rows)
            self._decision = self._decide(batch, self._forecast(batch))
        except Exception as error:  # as in step
            self._failure = repr(error)[:200]
            self._decision = self._full(Reason.FAILED)
        return self._decision

    def reach_ms(
        self, rows: int, size_class: int = 0, phase: Phase = Phase.DECODE
    ) -> tuple[float, float] | None:
        """Forecast in ms at the quality floor and at full quality; None before anything is known.

        For a batch that was decided for: learns nothing, moves nothing.
        """
        batch = Batch.of(phase, rows, size_class, None)
        forecast = self._forecast(batch)
        return None if forecast is None else (forecast.ms(self._min_share(batch)), forecast.ms(1.0))

    def set_slo(self, slo: Slo | Sequence[Slo]) -> None:
        """One promise, or one per class of requests: they share the steps, the strictest rules."""
        self._limits = SloLimits.of(slo)
        self._feedback.keep(self._limits)

    def set_min_retained_mass(self, min_retained_mass: float) -> None:
        self.config = replace(self.config, min_retained_mass=min_retained_mass)

    def set_max_quality_loss(self, max_quality_loss: float | None) -> None:
        """Limit the mean KL to the full model, in nats per token; None: only the floor limits."""
        self.config = replace(self.config, max_quality_loss=max_quality_loss)

    def override(
        self, budget: int | Literal["full"] | None = None, demand: float | None = None
    ) -> None:
        """Fix the cap, the demand or both; with neither, hand back to the law without a jump.

        Under an SLO a cap alone leaves the law at work, below that cap.
        """
        if budget is None and demand is None:
            self._is_handing_over = self._override is not None
            self._override = None
            return
        self._override = Override.make(budget, demand, self.num_experts)

    def inherit(self, base_ms: float, row_ms: float, slope_ms: float) -> None:
        """Start from what other replicas found: ms = base + row * rows + slope * sum of T."""
        self._estimator.cost.inherit(Inherited(base_ms, row_ms, slope_ms))

    def state(self) -> dict[str, Any]:
        """For telemetry and logs: plain numbers, strings and dicts."""
        return {
            **self._limits.state(),
            "min_retained_mass": self.config.min_retained_mass,
            "max_quality_loss": self.config.max_quality_loss,
            "override": None if self._override is None else asdict(self._override),
            **self._decision.terms(),
            **self._estimator.state(self.slo.percentile),
            **self._quality.state(),
            "queue_ms": self._queue.wait_ms,
            "ignored_gaps": self._feedback.ignored,
            "steps": sum(self._counts.values()),
            "counts": dict(self._counts),
            "failure": self._failure,
        }

    def _step(self, seen: Observation) -> Decision:
        if not self._gate.admits(seen):
            if self._gate.is_blind and self._override is None:
                return self._full(Reason.BLIND)
            return replace(self._decision, reason=Reason.FROZEN)
        batch = Batch.seen(seen)
        return self._decide(batch, self._learn(seen, batch))

    def _learn(self, seen: Observation, batch: Batch) -> Forecast | None:
        """A mixed step says nothing but what its decode rows lost to the prompts beside them."""
        applied = self._history.applied(seen)
        share = self._estimator.observe(seen, batch, applied)
        if seen.phase is not Phase.MIXED:
            self._queue.watch(seen.queue_ms)
            if applied.is_certain:
                self._quality.observe(seen, batch, share)
        forecast = self._forecast(batch)
        if forecast is not None and self._limits.limits_ms:
            hold = self._holds.setdefault(batch.key, HeldShare())
            min_share_ms = forecast.ms(max(self._min_share(batch), self._guard(batch, hold)))
            own_ms = forecast.ms(hold.share)
            self._feedback.track(self._estimator.window, self._limits, own_ms, min_share_ms)
        return forecast

    def _decide(self, batch: Batch, forecast: Forecast | None) -> Decision:
        """The budget is decided here, by `law.decide`, unless an operator fixed it."""
        hold = self._holds.setdefault(batch.key, HeldShare())
        order = self._override
        if order is not None:
            if order.demand is not None or forecast is None or not self._limits:
                return self._fixed(batch, forecast, hold, order)
            forecast = replace(forecast, most=float((order.cap or 1) * self.num_layers))
        if forecast is None:
            return self._full(Reason.FULL)
        slo_ms, tail, _ = self._limits.binding(self._feedback.tails)
        queue_ms = self._queue.limit_ms(self._limits.ttft_ms, forecast.ms(1.0))
        is_queueing = queue_ms < slo_ms / max(1.0 + tail, 0.5)
        if is_queueing:
            slo_ms, tail = queue_ms, 0.0
        if math.isinf(slo_ms):
            hold.share = 1.0
            return self._full(Reason.FULL, forecast)
        excess_ms = 0.0
        if not is_queueing:
            excess_ms = self._estimator.disturbance_ms(batch, forecast, hold.has_tried_min_share)
        now = Situation(
            forecast,
            slo_ms=slo_ms,
            tail=tail,
            held_tail=hold.tail,
            excess_ms=excess_ms,
            held=hold.share,
            min_share=self._min_share(batch),
            guard=self._guard(batch, hold),
        )
        move = decide(now, self.config)
        if is_queueing and not move.saturated and move.share < 1.0:
            move = replace(move, reason=Reason.QUEUE)
        if self._is_handing_over:
            wanted, move = move, hold.walk(move, self.config.handover)
            self._is_handing_over = move is not wanted
        hold.take(move, tail)
        if self._feedback.is_ignoring and not move.saturated:
            move = replace(move, reason=Reason.OUTSIDE)
        layers, exact = self._estimator.layers(batch), forecast.exact / forecast.uncapped
        caps = hold.still(batch, forecast, move.share)
        if caps is None:
            caps = hold.keep(batch, self._budget.caps(layers, exact, move.share))
        return replace(
            self._budget.moved(move, layers, caps, forecast, order),
            feedback_ms=move.target_ms - slo_ms * (1.0 - self.config.margin),
            outside_ms=excess_ms,
            guard_share=now.guard,
            predicted_kl=self._quality.kl_at(batch.key, move.share),
        )

    def _fixed(
        self, batch: Batch, forecast: Forecast | None, hold: HeldShare, order: Override
    ) -> Decision:
        layers, read_share = self._estimator.layers(batch), self._estimator.read_share
        decision = self._budget.fixed(order, layers, forecast, read_share)
        hold.share = decision.share  # where the law will take over
        return decision

    def _min_share(self, batch: Batch) -> float:
        """The least share that keeps the mass that the operator asks for."""
        return self._quality.share_keeping(batch.key, self.config.min_retained_mass)

    def _guard(self, batch: Batch, hold: HeldShare) -> float:
        """The least share that the limit on quality allows; a new limit walks up to it."""
        limit = self.config.max_quality_loss
        if limit is None:
            return 0.0
        wanted = self._quality.share_for(batch.key, limit)
        return min(wanted, hold.share + self.config.handover, 1.0)

    def _forecast(self, batch: Batch) -> Forecast | None:
        forecast = self._estimator.forecast(batch)
        if forecast is not None and not math.isfinite(forecast.ms(1.0)):
            self._estimator = self._new_estimator()
            self._feedback.tails.clear()
            raise RuntimeError("the model diverged; it starts anew")
        return forecast

    def _new_estimator(self) -> Estimator:
        return Estimator(self.config, self.num_layers, self.num_experts, self.top_k)

    def _full(self, reason: Reason, forecast: Forecast | None = None) -> Decision:
        uncapped = self.num_experts * self.num_layers if forecast is None else forecast.uncapped
        return self._budget.full(reason, self._estimator.uncapped.per_layer(uncapped), forecast)
