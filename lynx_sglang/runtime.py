"""Lynx inside one scheduler process: the two loops, and the buffer in which they meet.

Data path, per layer: ``select`` reads the buffer and edits the routing.
Control path, per step: ``begin`` describes the batch, ``end`` tells the controller what the step
cost and writes its decision into the buffer. The budget is decided in ``Runtime.end``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lynx_controller import Controller, ControllerConfig, Decision, Observation, Phase
from lynx_controller.log import Log, LoggedController
from lynx_controller.member import Member
from lynx_kernels import select, warm_up
from lynx_sglang import doors, membership, runner, shadow, telemetry, tier
from lynx_sglang.buffer import Buffer
from lynx_sglang.clock import StepClock
from lynx_sglang.errors import LynxError
from lynx_sglang.settings import Settings, promise_of
from lynx_sglang.step import SLOTS, Step, pad_to, slot_of, step_of
from lynx_sglang.tier import Tier
from lynx_sglang.waiting import Waiting

logger = logging.getLogger(__name__)

Batch = tuple[Phase, int, int]  # phase, rows, flexible rows
Routing = tuple[torch.Tensor, torch.Tensor]  # topk_ids [M, K], topk_weights [M, K]


class Runtime:
    """One model replica's selection and control. Holds the state of the step that is running."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.default_tier = Tier(settings.default_tier)
        self.layer_ids: list[int] = []  # set while the model is built
        self.num_experts = 0
        self.top_k = 0
        self.controller: Controller | None = None  # set by the first step
        self.buffer: Buffer | None = None
        self.decision: Decision | None = None
        self.telemetry = telemetry.Telemetry()
        self.step: Step | None = None  # that is running
        self._planned_for: Batch = (Phase.DECODE, 1, 1)  # what the decision in force is for
        self.member: Member | None = None  # of a fleet, with --lynx-store; set by the first step
        self._clock = StepClock()
        self.slots: Sequence[int] = SLOTS
        self._is_open = False  # to the scheduler's metrics
        self.shadow_refusal: str | None = None  # why this model cannot run a step twice
        self._sampler = shadow.Sampler()

    # ------------------------------------------------------------------ start

    def runner_hooks(self) -> dict[doors.Door, Callable[..., Any]]:
        """Register what runs the experts; hooks that go around SGLang's making of it."""
        runner.install(self.add_layer)
        return {doors.CREATE_RUNNER: runner.create_moe_runner}

    def add_layer(self, config: Any) -> None:
        """Note a MoE layer as SGLang builds it."""
        shared = config.num_fused_shared_experts or 0
        self.layer_ids.append(config.layer_id)
        self.num_experts = config.num_experts - shared
        self.top_k = config.top_k - shared

    def start(self) -> None:
        """The model is built: make the controller, say that Lynx is on."""
        if not self.layer_ids:
            raise LynxError("--moe-backend lynx: the model was built without a MoE layer of Lynx's")
        self.layer_ids.sort()
        self.buffer = self.make_buffer()
        settings = self.settings
        make: Callable[..., Controller] = Controller
        if settings.decision_log is not None:
            make = partial(LoggedController, Log(Path(settings.decision_log)))
        self.controller = make(
            slo=settings.slo,
            num_layers=len(self.layer_ids),
            num_experts=self.num_experts,
            top_k=self.top_k,
            config=ControllerConfig(min_demand=settings.min_demand, floor=settings.floor),
        )
        self.apply_overrides(settings)
        logger.info(
            "lynx is active: policy %s, %s, %s, budget %s, demand %s (at least %s), floor %d, "
            "%d MoE layers of %d experts, top-%d",
            settings.policy,
            promise_of(asdict(settings)),
            f"quality limit {settings.max_quality_loss:g} nats"
            if settings.max_quality_loss is not None
            else "no quality limit",
            settings.budget,
            settings.demand,
            settings.min_demand,
            settings.floor,
            len(self.layer_ids),
            self.num_experts,
            self.top_k,
        )
        if settings.calibration is not None:
            logger.info(
                "lynx is calibrated by %s: demand at least %g",
                settings.calibration,
                settings.min_demand,
            )

    def make_buffer(self) -> Buffer:
        """What the data path needs before its first step."""
        warm_up(self.num_experts, self.top_k)
        return Buffer(self.layer_ids, self.num_experts, self.settings.floor)

    def apply_overrides(self, settings: Settings) -> None:
        """Put the operator's fixed budget and demand, SLO and floors in force."""
        assert self.controller is not None
        assert self.buffer is not None
        self.settings = settings
        budget = None if settings.budget == "auto" else settings.cap(self.num_experts)
        demand = None if settings.demand == "auto" else float(settings.demand)
        if settings.budget == "full":
            demand = 1.0
        self.controller.set_slo(settings.slo)
        self.controller.set_min_demand(settings.min_demand)
        self.controller.set_max_quality_loss(settings.max_quality_loss)
        self.controller.override(budget=budget, demand=demand)
        self.buffer.set_floor(settings.floor)
        self._plan(self._planned_for)

    # -------------------------------------------------------------- data path

    def select(
        self,
        layer_id: int,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        scores: Callable[[], torch.Tensor],
        correction_bias: torch.Tensor | None,
        *,
        is_final: bool = True,
    ) -> Routing | None:
        """One layer's routing after selection; None leaves it as it is.

        ``is_final``: what runs the experts sees just this (a GPU's schedule relies on it).
        """
        step, buffer = self.step, self.buffer
        if step is None or buffer is None or not step.rows:
            return None
        if not step.is_selecting:
            step.num_active[layer_id] = count_active(topk_ids, self.num_experts)
            return None
        selection = select(
            scores(),
            topk_ids,
            topk_weights,
            pad_to(step.row_class, topk_ids.shape[0]),
            budget=buffer.caps[layer_id],
            floor=buffer.floor,
            demand=buffer.demand,
            policy=self.settings.policy,
            correction_bias=correction_bias,
        )
        step.note_layer(layer_id, int(selection.num_active), selection.retained_mass.numpy())
        return selection.topk_ids, selection.topk_weights

    # ----------------------------------------------------------- control path

    def run_batch(
        self, original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any
    ) -> Any:
        """The hook around ``Scheduler.run_batch``: one step, begun and ended."""
        step = self.begin(scheduler, batch)
        step.is_selecting = step.num_flexible > 0 and not self._is_full()
        if step.is_selecting and step.phase is Phase.DECODE:
            step.is_shadowed = self._sampler.pick(self.settings.shadowed_share)
        self.step = step
        try:
            result = original(scheduler, batch, *rest)
        finally:
            self.step = None
        assert self.decision is not None
        step.add_up_layers()
        self.end(
            step,
            time.monotonic(),
            ran_under=self.decision,
            launch_s=batch.launch_ts,
            is_after_idle=batch.after_idle_gap,
        )
        return result

    def begin(self, scheduler: Any, batch: Any) -> Step:
        """Describe a batch that is about to run, and decide for it where it is a new one."""
        if self.controller is None:
            self.start()
        if not self._is_open:
            self._is_open = True
            self.telemetry.open(scheduler)
            if self.settings.store is not None:
                self.member = membership.join(
                    self.settings.store,
                    scheduler.model_config.hf_config,
                    len(self.layer_ids),
                    self.num_experts,
                    self.top_k,
                )
            self.shadow_refusal = self.refuse_shadow(scheduler.model_config)
        step = step_of(batch, scheduler.forward_ct + 1, self.default_tier)
        if step.rows and self.settings.slo_ttft_ms is not None:
            step.waiting = Waiting.of(scheduler)
        if step.rows and batch_of(step) != self._planned_for:
            self._plan(batch_of(step))
        return step

    def refuse_shadow(self, model_config: Any) -> str | None:
        """Why steps cannot run twice; None where they can."""
        return shadow.refusal(model_config)

    @contextmanager
    def all_experts(self) -> Iterator[None]:
        """Nothing is cut, and nothing is noted of what runs."""
        assert self.decision is not None
        assert self.buffer is not None
        step, self.step = self.step, None
        full = (self.num_experts,) * len(self.layer_ids)
        self.buffer.write(replace(self.decision, demand=1.0, budget=full), self.num_experts)
        try:
            yield
        finally:
            self.buffer.write(self.decision, self.num_experts)
            self.step = step

    def end(
        self, step: Step, now_s: float, *, ran_under: Decision, launch_s: float, is_after_idle: bool
    ) -> None:
        """Account for a step that finished at ``now_s`` and decide the next one's budget."""
        assert self.controller is not None
        step_ms, itl_ms = self._clock.end(
            now_s,
            launch_s,
            is_after_idle=is_after_idle,
            streams=[request.rid for request in step.requests],
        )
        self.telemetry.step_ended(step, step_ms)
        if not step.rows:
            return
        if step.row_retained_mass is None:
            masses = [1.0] * step.rows
        else:
            masses = (step.row_retained_mass / len(self.layer_ids)).tolist()
        for request, mass in zip(step.requests, masses, strict=True):
            tier.account_of(request).add(min(1.0, mass))
        if len(step.num_active) < len(self.layer_ids):
            return  # the forward did not reach every layer
        # A shadow pass is in the gap that streams saw, and no part of what the step costs.
        seen = self._observation(step, ran_under, step_ms - step.shadow_ms, itl_ms)
        if self.member is not None:
            self.member.note(seen, self.controller)
        self._put_in_force(self.controller.step(seen))
        self._planned_for = batch_of(step)
        self.telemetry.decided(self, step, ran_under)

    def _plan(self, batch: Batch) -> None:
        """Decide for a batch that differs from the last one, before it runs."""
        assert self.controller is not None
        phase, rows, num_flexible = self._planned_for = batch
        self._put_in_force(self.controller.plan(rows, self.slot_of(rows), phase, num_flexible))

    def _observation(
        self, step: Step, ran_under: Decision, step_ms: float, itl_ms: float
    ) -> Observation:
        return Observation(
            step=step.number,
            phase=step.phase,
            rows=step.rows,
            slot=self.slot_of(step.rows),
            step_ms=step_ms,
            itl_ms=itl_ms,
            active_experts=[step.num_active[layer] for layer in self.layer_ids],
            retained_mass=[step.retained_mass.get(layer, 1.0) for layer in self.layer_ids],
            kv_tokens=step.kv_tokens,
            flexible_rows=step.num_flexible,
            queue=None if step.waiting is None else step.waiting.requests,
            queue_ms=None if step.waiting is None else step.waiting.oldest_ms,
            demand=ran_under.demand,
            budget_applied=ran_under.budget,
            shadow_kl=None if step.shadow is None else step.shadow.mean_kl,
            shadow_agreement=None if step.shadow is None else step.shadow.agreement,
        )

    def slot_of(self, rows: int) -> int:
        """Batch-size class of a step: the size of the graph that runs it, where there is one."""
        return slot_of(rows, self.slots)

    def _put_in_force(self, decision: Decision) -> None:
        assert self.buffer is not None
        self.decision = decision
        self.buffer.write(decision, self.num_experts)

    def _is_full(self) -> bool:
        return self.settings.budget == "full" or self.buffer is None or self.buffer.is_full


def batch_of(step: Step) -> Batch:
    return step.phase, step.rows, step.num_flexible


def count_active(topk_ids: torch.Tensor, num_experts: int) -> int:
    """Distinct routed experts in ``topk_ids`` [M, K] (CPU); shared and empty slots don't count."""
    is_used = np.zeros(num_experts, dtype=bool)
    ids = topk_ids.numpy()
    is_used[ids[(ids >= 0) & (ids < num_experts)]] = True
    return int(is_used.sum())
