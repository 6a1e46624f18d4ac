"""The controller: holds the state, and turns one observation into one decision."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from .config import ControllerConfig
from .estimator import Batch, Estimator
from .forecast import Forecast
from .history import History
from .law import Move, Situation, decide
from .types import Decision, Key, Observation, Phase, Reason, Slo

DECIDING: Final = (Phase.DECODE, Phase.VERIFY, Phase.MIXED)
RESTART: Final = 16  # steps until an engine that counts from zero again is believed


@dataclass(slots=True)
class Hold:
    """What the law remembers of one phase and slot."""

    demand: float = 1.0
    tail_ms: float = 0.0


class Controller:
    """Turns an inter-token-latency SLO into a demand and a cap per layer, every decode step.

    `step` never raises and always answers in range. One instance per engine; not thread-safe.
    """

    def __init__(
        self,
        slo: Slo,
        num_layers: int,
        num_experts: int,
        top_k: int,
        config: ControllerConfig | None = None,
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers!r}")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be in [1, {num_experts}], got {top_k!r}")
        self.slo = slo
        self.config = config if config is not None else ControllerConfig()
        self.num_layers, self.num_experts, self.top_k = num_layers, num_experts, top_k
        self._estimator = self._new_estimator()
        self._holds: dict[Key, Hold] = {}
        self._override: tuple[int | None, float | None] | None = None
        self._handing_over = False
        self._is_guarded = False
        self._last_step: int | None = None
        self._stale_step: int | None = None
        self._stale_run = 0
        full = (num_experts,) * num_layers
        self._history = History(full, self.config.lag_steps)
        self._counts: Counter[str] = Counter()
        self._failure: str | None = None
        self._retained: float | None = None
        self._decision = self._full(Reason.FULL)

    def step(self, observation: Observation) -> Decision:
        """Learn from one finished step and decide for the ones to come."""
        try:
            decision = self._step(observation)
        except Exception as error:  # the engine must go on: full quality, counted in state()
            self._failure = repr(error)[:200]
            decision = self._full(Reason.FAILED)
        self._counts[decision.reason.value] += 1
        if decision.reason is not Reason.FROZEN and self._last_step is not None:
            self._history.remember(self._last_step, decision)
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

    def set_slo(self, slo: Slo) -> None:
        if slo.percentile != self.slo.percentile:
            self._estimator.tail = None
        self.slo = slo

    def set_min_demand(self, min_demand: float) -> None:
        self.config = replace(self.config, min_demand=min_demand)

    def override(
        self, budget: int | Literal["full"] | None = None, demand: float | None = None
    ) -> None:
        """Fix the cap, the demand or both; with neither, hand back to the law without a jump."""
        if budget is None and demand is None:
            self._handing_over = self._override is not None
            self._override = None
            return
        if budget == "full":
            budget = self.num_experts
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, int) or budget < 1
        ):
            raise ValueError(f'budget must be at least 1, "full" or None, got {budget!r}')
        if demand is not None and not 0.0 <= demand <= 1.0:
            raise ValueError(f"demand must be in [0, 1] or None, got {demand!r}")
        cap = None if budget is None else min(budget, self.num_experts)
        self._override = (cap, None if demand is None else float(demand))

    def state(self) -> dict[str, Any]:
        """For telemetry and logs: plain numbers, strings and dicts."""
        estimator, decision = self._estimator, self._decision
        cost = estimator.cost
        return {
            "slo_ms": self.slo.itl_ms,
            "percentile": self.slo.percentile,
            "min_demand": self.config.min_demand,
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
            "ignored_gaps": estimator.ignored,
            "retained_mass": self._retained,
            "windowed_itl_ms": estimator.window.gap_ms(self.slo.percentile),
            "bases_ms": {
                f"{phase.value}/{slot}": cost.base_ms((phase, slot), hold_rows)
                for (phase, slot), hold_rows in self._known_rows().items()
            },
            "override": None
            if self._override is None
            else {"budget": self._override[0], "demand": self._override[1]},
            "steps": sum(self._counts.values()),
            "counts": dict(self._counts),
            "failure": self._failure,
        }

    def _known_rows(self) -> dict[Key, float]:
        slots = self._estimator.cost.slots
        return {key: slots[key].mean_rows for key in self._holds if key in slots}

    def _step(self, seen: Observation) -> Decision:
        if not self._is_usable(seen):
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
        self._watch_mass(seen)
        self._track_tail(batch)
        return self._decide(batch)

    def _is_usable(self, seen: Observation) -> bool:
        if seen.phase not in DECIDING or seen.rows < 1:
            return False
        if not 0.0 < seen.step_ms <= self.config.max_step_ms:  # NaN fails both
            return False
        if self._last_step is not None and seen.step <= self._last_step:
            # A restarted engine counts from zero again: believe it once it has counted for long.
            is_next = self._stale_step is None or seen.step > self._stale_step
            self._stale_run = self._stale_run + 1 if is_next else 0
            self._stale_step = seen.step
            if self._stale_run < RESTART:
                return False
            self._history.forget()
        self._stale_step, self._stale_run = None, 0
        self._last_step = seen.step
        return True

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

    def _watch_mass(self, seen: Observation) -> None:
        if len(seen.retained_mass) == 0:
            return
        mass = sum(float(each) for each in seen.retained_mass) / len(seen.retained_mass)
        if 0.0 <= mass <= 1.0:
            held = mass if self._retained is None else self._retained
            self._retained = held + 0.05 * (mass - held)

    def _decide(self, batch: Batch) -> Decision:
        hold = self._holds.setdefault(batch.key, Hold())
        forecast = self._forecast(batch)
        if self._override is not None:
            return self._overridden(forecast, hold, *self._override)
        if forecast is None or self.slo.itl_ms is None:
            hold.demand = 1.0
            return self._full(Reason.FULL, forecast)
        tail_ms = (self._estimator.tail or 0.0) * forecast.ms(hold.demand)
        excess_ms = self._estimator.cost.excess_ms(batch.key)
        situation = Situation(
            forecast, self.slo.itl_ms, tail_ms, hold.tail_ms, excess_ms, hold.demand
        )
        move = decide(situation, self.config)
        if self._handing_over:
            move = self._hand_over(move, hold)
        if move.demand != hold.demand:
            hold.demand, hold.tail_ms = move.demand, situation.tail_ms
        return self._settle(move, situation)

    def _track_tail(self, batch: Batch) -> None:
        forecast = self._forecast(batch)
        if forecast is None or self.slo.itl_ms is None:
            return
        room_ms = self.slo.itl_ms * (1.0 - self.config.margin)
        room_ms = max(0.0, room_ms - forecast.ms(self.config.min_demand))
        payable_ms = room_ms * (0.95 if self._is_guarded else 1.05)
        own_ms = forecast.ms(self._holds.setdefault(batch.key, Hold()).demand)
        self._estimator.track_tail(self.slo.percentile, own_ms, payable_ms)
        share = self._estimator.ignored / self.config.window_steps
        self._is_guarded = share > 1.0 - self.slo.percentile / 100.0

    def _forecast(self, batch: Batch) -> Forecast | None:
        forecast = self._estimator.forecast(batch)
        if forecast is not None and not math.isfinite(forecast.ms(1.0)):
            self._estimator = self._new_estimator()
            raise RuntimeError("the model diverged; it starts anew")
        return forecast

    def _new_estimator(self) -> Estimator:
        return Estimator(self.config, self.num_layers, self.num_experts, self.top_k)

    def _hand_over(self, move: Move, hold: Hold) -> Move:
        """After an override: walk from its demand to the law's instead of jumping."""
        step = self.config.handover
        if abs(move.demand - hold.demand) <= step:
            self._handing_over = False
            return move
        demand = hold.demand + math.copysign(step, move.demand - hold.demand)
        return replace(move, demand=demand)

    def _overridden(
        self, forecast: Forecast | None, hold: Hold, cap: int | None, demand: float | None
    ) -> Decision:
        full = self._full(Reason.OVERRIDE, forecast)
        hold.demand = 1.0 if demand is None else demand
        decision = replace(full, demand=hold.demand)
        if forecast is None:
            return self._capped(decision, cap)
        active = forecast.active(hold.demand)
        if cap is not None:
            active = min(active, float(cap * self.num_layers))
            hold.demand = min(hold.demand, forecast.demand_of(active))
        decision = replace(
            decision,
            expected_active=tuple((self._estimator.layer_share * active).tolist()),
            predicted_ms=forecast.base_ms + forecast.slope_ms * active,
        )
        return self._capped(decision, cap)

    def _capped(self, decision: Decision, cap: int | None) -> Decision:
        return decision if cap is None else replace(decision, budget=(cap,) * self.num_layers)

    def _settle(self, move: Move, situation: Situation) -> Decision:
        """The move as a decision: expected active experts and the cap above them, per layer."""
        forecast = situation.forecast
        active = forecast.active(move.demand)
        share = self._estimator.layer_share
        expected = share * active
        if move.demand >= 1.0:
            budget = self._history.full
        else:
            cap = np.ceil(self.config.cap_slack * expected)
            limit = np.minimum(np.maximum(cap, self.top_k), self.num_experts)
            budget = tuple(limit.astype(int).tolist())
        return Decision(
            budget=budget,
            demand=move.demand,
            expected_active=tuple(expected.tolist()),
            reason=Reason.GUARD if self._is_guarded and not move.saturated else move.reason,
            saturated=move.saturated,
            predicted_ms=forecast.base_ms + forecast.slope_ms * active,
            target_ms=move.target_ms,
            trim_ms=-situation.tail_ms,
            outside_ms=situation.excess_ms,
        )

    def _full(self, reason: Reason, forecast: Forecast | None = None) -> Decision:
        active = float(self.num_experts * self.num_layers)
        predicted_ms = 0.0
        if forecast is not None:
            active, predicted_ms = forecast.active(1.0), forecast.ms(1.0)
        return Decision(
            budget=self._history.full,
            demand=1.0,
            expected_active=tuple((self._estimator.layer_share * active).tolist()),
            reason=reason,
            saturated=False,
            predicted_ms=predicted_ms,
        )
