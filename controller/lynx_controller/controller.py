"""The controller: one observation in, one decision out.

gate     is the step worth reading?                                    learn/gate
learn    step cost, uncapped active experts, quality, gaps, queue      learn/, decide/feedback
decide   limit -> situation -> move -> caps                            decide/
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from lynx_controller.config import ControllerConfig
from lynx_controller.decide.budget import Budget
from lynx_controller.decide.feedback import Feedback
from lynx_controller.decide.held import HeldShare
from lynx_controller.decide.law import Move, Situation, decide
from lynx_controller.decide.limit import Limit
from lynx_controller.decide.override import Operator, Override
from lynx_controller.decide.queue_pressure import QueuePressure
from lynx_controller.decide.slo_limits import SloLimits
from lynx_controller.failures import Failures
from lynx_controller.forecast import Forecast
from lynx_controller.learn.cost import StepCost
from lynx_controller.learn.estimator import Estimator
from lynx_controller.learn.gate import Gate
from lynx_controller.learn.history import History
from lynx_controller.learn.mass_feedback import MassFeedback
from lynx_controller.learn.quality import Quality
from lynx_controller.learn.uncapped import PerLayer
from lynx_controller.types import Batch, Decision, Key, Observation, Phase, Reason, Slo


class Controller:
    """Turns a latency SLO into a cap on each layer's active experts, every decode step.

    `step` and `plan` never raise and always answer in range. One instance per engine; not
    thread-safe.
    """

    def __init__(
        self,
        slo: Slo,
        num_layers: int,
        num_experts: int,
        top_k: int,
        config: ControllerConfig | None = None,
        layer_offsets: Sequence[float] | None = None,
    ) -> None:
        """
        Args:
            layer_offsets: [L] by how much a layer's share of its uncapped active experts differs
                from the mean share, at shares of a half and below (`lynx-sglang calibrate`).
                None: not at all.

        Raises:
            ValueError: a size or an offset is out of range.
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
        self._mass = MassFeedback()
        self._queue = QueuePressure()
        self._history = History(self._budget.full_caps, self.config.lag_steps)
        self._held: dict[Key, HeldShare] = {}
        self._operator = Operator()
        self._counts: Counter[str] = Counter()
        self._failures = Failures()
        self._decision = self._full(Reason.FULL)
        self.set_slo(slo)

    @property
    def slo(self) -> Slo:
        return self._limits.slo

    def step(self, observation: Observation) -> Decision:
        """Learn from one finished step and decide for the next ones."""
        try:
            decision = self._step(observation)
        except Exception as error:  # the engine must go on: full quality
            decision = self._failed(error)
        self._counts[decision.reason.value] += 1
        if decision.reason is not Reason.FROZEN and self._gate.last_step is not None:
            self._history.remember(self._gate.last_step, decision)
        self._decision = decision
        return decision

    def plan(self, batch: Batch) -> Decision:
        """Decide for a batch that is known before it runs; learns nothing.

        Saves a load step its lag. Steps run under a plan must report `budget_applied`.
        An unreadable step leaves the plan in force.
        """
        try:
            batch = batch.in_range()
            self._decision = self._decide(batch, self._forecast(batch))
        except Exception as error:  # as in step
            self._decision = self._failed(error)
        return self._decision

    def reach_ms(self, batch: Batch) -> tuple[float, float] | None:
        """Forecast in ms at the least share and at full quality; None before any cost is known.

        For a batch that was decided for: learns nothing, moves nothing.
        """
        batch = batch.in_range()
        forecast = self._forecast(batch)
        if forecast is None:
            return None
        return forecast.ms(self._min_share(batch)), forecast.ms(1.0)

    @property
    def noise(self) -> float:
        """Relative standard deviation of a step's time, as learned."""
        return self._estimator.cost.sigma

    def set_slo(self, slo: Slo) -> None:
        self._limits = SloLimits.of(slo)
        self._feedback.keep(self._limits)

    def set_min_retained_mass(self, min_retained_mass: float) -> None:
        """Least retained mass, mean over a step's rows, that the controller leaves."""
        self.config = replace(self.config, min_retained_mass=min_retained_mass)

    def set_max_quality_loss(self, max_quality_loss: float | None) -> None:
        """Limit the mean KL to the full model, in nats per token; None: no limit."""
        self.config = replace(self.config, max_quality_loss=max_quality_loss)

    def override(
        self,
        budget: int | Literal["full"] | None = None,
        demand: float | None = None,
        share: float | None = None,
    ) -> None:
        """Fix the cap, the demand or the share; with none, hand back to the law without a jump.

        Under an SLO a cap alone leaves the law at work, below that cap. A share is of the uncapped
        active experts, split over the layers as the law's.
        """
        self._operator.set(Override.make(budget, demand, self.num_experts, share))

    def inherit(self, base_ms: float, row_ms: float, slope_ms: float) -> None:
        """Start from other replicas' step cost: ms = base + row * rows + slope * sum of T.

        Raises ValueError for an impossible term.
        """
        self._estimator.cost.inherit(StepCost(base_ms, row_ms, slope_ms))

    def state(self) -> dict[str, Any]:
        """For telemetry and logs: plain numbers, strings and dicts."""
        override = self._operator.override
        return {
            **self._limits.state(),
            "min_retained_mass": self.config.min_retained_mass,
            "max_quality_loss": self.config.max_quality_loss,
            "override": None if override is None else asdict(override),
            **self._decision.terms(),
            **self._estimator.state(self.slo.percentile),
            **self._quality.state(),
            "queue_ms": self._queue.wait_ms,
            "ignored_gaps": self._feedback.ignored,
            "steps": sum(self._counts.values()),
            "counts": dict(self._counts),
            "failures": self._failures.total,
            "failure": self._failures.last,
        }

    def _step(self, seen: Observation) -> Decision:
        if not self._gate.admits(seen):
            if self._gate.is_blind and self._operator.override is None:
                return self._full(Reason.BLIND)
            return replace(self._decision, reason=Reason.FROZEN)
        batch = seen.batch.in_range()
        return self._decide(batch, self._learn(seen, batch))

    def _learn(self, seen: Observation, batch: Batch) -> Forecast | None:
        """A mixed step teaches only the time that its decode rows lost to prompts."""
        applied = self._history.applied(seen)
        share = self._estimator.observe(seen, batch, applied)
        if seen.batch.phase is not Phase.MIXED:
            self._queue.watch(seen.queue_ms)
            if applied.is_certain:
                self._quality.observe(seen, batch, share)
                self._hold_mass(seen, batch)
        forecast = self._forecast(batch)
        if forecast is not None and self._limits.limits_ms:
            held = self._held_share(batch)
            lowest_ms = forecast.ms(max(self._min_share(batch), self._guard(batch, held)))
            own_ms = forecast.ms(held.share)
            self._feedback.track(self._estimator.window, self._limits, own_ms, lowest_ms)
        return forecast

    def _decide(self, batch: Batch, forecast: Forecast | None) -> Decision:
        """Limit -> situation -> move -> caps; unless an operator fixed it or nothing is limited."""
        held = self._held_share(batch)
        fixed = self._operator.fixed(has_law=forecast is not None and bool(self._limits))
        if fixed is not None:
            return self._fixed(batch, forecast, held, fixed)
        if forecast is None:
            return self._full(Reason.FULL)
        forecast = self._operator.bounded(forecast, self.num_layers)
        limit = Limit.of(self._limits, self._feedback.tails, self._queue, forecast.ms(1.0))
        if math.isinf(limit.ms):
            held.share = 1.0
            return self._full(Reason.FULL, forecast)
        now = self._situation(batch, forecast, held, limit)
        move = self._operator.hand_over(
            limit.explain(decide(now, self.config)), held, self.config.handover
        )
        held.take(move, limit.tail)
        if self._feedback.is_ignoring and not move.saturated:
            move = replace(move, reason=Reason.OUTSIDE)
        return self._moved(batch, now, held, move)

    def _situation(
        self, batch: Batch, forecast: Forecast, held: HeldShare, limit: Limit
    ) -> Situation:
        excess_ms = 0.0
        if not limit.is_queue:
            excess_ms = self._estimator.disturbance_ms(batch, forecast, held.has_tried_min_share)
        return Situation(
            forecast,
            slo_ms=limit.ms,
            tail=limit.tail,
            held_tail=held.tail,
            excess_ms=excess_ms,
            held=held.share,
            min_share=self._min_share(batch),
            guard=self._guard(batch, held),
        )

    def _moved(self, batch: Batch, now: Situation, held: HeldShare, move: Move) -> Decision:
        """The move's share as caps, with the terms that made it."""
        layers, forecast = self._estimator.layers(batch), now.forecast
        caps = held.kept_caps(batch, forecast, move.share)
        if caps is None:
            exact = forecast.exact / forecast.uncapped
            caps = held.keep_caps(batch, self._budget.caps(layers, exact, move.share))
        return self._budget.moved(
            move,
            layers,
            caps,
            forecast,
            self._operator.override,
            feedback_ms=move.target_ms - now.slo_ms * (1.0 - self.config.margin),
            outside_ms=now.excess_ms,
            guard_share=now.guard,
            predicted_kl=self._quality.kl_at(batch.key, move.share),
        )

    def _fixed(
        self, batch: Batch, forecast: Forecast | None, held: HeldShare, override: Override
    ) -> Decision:
        layers, read_share = self._estimator.layers(batch), self._estimator.read_share
        decision = self._budget.fixed(override, layers, forecast, read_share)
        held.share = decision.share  # the law will take over from here
        return decision

    def _full(self, reason: Reason, forecast: Forecast | None = None) -> Decision:
        uncapped = self.num_experts * self.num_layers if forecast is None else forecast.uncapped
        layers: PerLayer = self._estimator.uncapped.per_layer(uncapped)
        return self._budget.full(reason, layers, forecast)

    def _failed(self, error: Exception) -> Decision:
        self._failures.note(error)
        return self._full(Reason.FAILED)

    def _held_share(self, batch: Batch) -> HeldShare:
        return self._held.setdefault(batch.key, HeldShare())

    def _min_share(self, batch: Batch) -> float:
        """The least share that keeps the operator's retained mass, by model and measurement."""
        model = self._quality.share_keeping(batch.key, self.config.min_retained_mass)
        return min(1.0, model + self._mass.lift(batch.key))

    def _hold_mass(self, seen: Observation, batch: Batch) -> None:
        if self._operator.override is None and batch.flexible_rows:
            least_mass, share = self.config.min_retained_mass, self._decision.share
            self._mass.observe(
                batch.key, seen.retained_mass, share, self._min_share(batch), least_mass
            )

    def _guard(self, batch: Batch, held: HeldShare) -> float:
        """The least share within the quality limit; a new limit is approached in steps."""
        limit = self.config.max_quality_loss
        if limit is None:
            return 0.0
        wanted = self._quality.share_for(batch.key, limit)
        return min(wanted, held.share + self.config.handover, 1.0)

    def _forecast(self, batch: Batch) -> Forecast | None:
        forecast = self._estimator.forecast(batch)
        if forecast is not None and not math.isfinite(forecast.ms(1.0)):
            self._estimator = self._new_estimator()
            self._feedback.tails.clear()
            raise RuntimeError("the cost model diverged and starts anew")
        return forecast

    def _new_estimator(self) -> Estimator:
        return Estimator(self.config, self.num_layers, self.num_experts, self.top_k)
