"""Lynx inside one scheduler process: the two loops, and the buffer in which they meet.

Data path, per layer: ``select`` reads the buffer and edits the routing.
Control path, per step: ``begin`` describes the batch, ``end`` tells ``control`` what the step cost
and puts its decision in the buffer. Of several ranks, rank 0 alone decides: see ``ranks``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lynx_controller import Batch, Decision, Phase, Reason
from lynx_kernels import select, warm_up
from lynx_sglang import calibration
from lynx_sglang.errors import LynxError
from lynx_sglang.loop import shadow, telemetry
from lynx_sglang.loop.buffer import Buffer
from lynx_sglang.loop.control import Control
from lynx_sglang.loop.ranks import Order, Ranks
from lynx_sglang.loop.step import (
    SIZE_CLASSES,
    Step,
    batch_ahead,
    pad_to,
    size_class_of,
    step_of,
)
from lynx_sglang.loop.tier import Tier
from lynx_sglang.loop.waiting import Waiting
from lynx_sglang.settings import Settings

logger = logging.getLogger(__name__)

Routing = tuple[torch.Tensor, torch.Tensor]  # topk_ids [M, K], topk_weights [M, K]


class Runtime:
    """One rank's selection and control. Holds the state of the step that is running."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.default_tier = Tier(settings.default_tier)
        self.layer_ids: list[int] = []  # set while the model is built
        self.num_experts = 0
        self.top_k = 0
        self.contributions: dict[int, torch.Tensor] = {}  # by layer id; set by ``start``
        self.buffer: Buffer | None = None  # set, with a decision, before the first step or capture
        self.decision: Decision | None = None  # in force
        self.ranks: Ranks | None = None  # set by the first step
        self.control: Control | None = None  # set by the first step, on rank 0
        self.telemetry = telemetry.Telemetry()
        self.step: Step | None = None  # that is running
        self.size_classes: Sequence[int] = SIZE_CLASSES
        self.shadow_refusal: str | None = None  # why this model cannot run a step twice
        self._sampler = shadow.Sampler()
        self._scheduler: Any = None
        self._foreseen: Batch | None = None  # by rank 0, with the last order

    # ------------------------------------------------------------------ start

    def add_layer(self, config: Any) -> None:
        """Note a MoE layer as SGLang builds it."""
        shared = config.num_fused_shared_experts or 0
        self.layer_ids.append(config.layer_id)
        self.num_experts = config.num_experts - shared
        self.top_k = config.top_k - shared

    def start(self) -> None:
        """The model is built: make the data path, at full quality."""
        if not self.layer_ids:
            raise LynxError("--moe-backend lynx: the model was built without a MoE layer of Lynx's")
        self.layer_ids.sort()
        if self.settings.calibration is not None:
            measured = calibration.load(self.settings.calibration, self.settings.policy)
            self.contributions = measured.contributions_of(self.layer_ids, self.num_experts)
        self.buffer = self.make_buffer()
        self._put_in_force(self._all_experts(), self.settings.floor)

    def open(self, scheduler: Any) -> None:
        """The first step: rank 0 takes control, the others follow."""
        self._scheduler = scheduler
        self.shadow_refusal = self.refuse_shadow(scheduler.model_config)
        self.ranks = Ranks.of_process()
        if not self.ranks.leads:
            logger.info("lynx follows rank 0, on rank %d of %d", self.ranks.rank, self.ranks.size)
            return
        self.telemetry.open(scheduler)
        sizes = self.layer_ids, self.num_experts, self.top_k
        self.control = Control(self.settings, *sizes, self.telemetry)
        if self.settings.store is not None:
            self.control.join(scheduler.model_config.hf_config, self.ranks.spread)
        self.control.log_start(self.ranks.size)
        self._adopt(self.control.decision)

    def make_buffer(self) -> Buffer:
        """What the data path needs before its first step."""
        warm_up(self.num_experts, self.top_k)
        return Buffer(self.layer_ids, self.num_experts, self.settings.floor)

    def apply_overrides(self, settings: Settings) -> None:
        """Put the operator's fixed budget and demand, SLO and floors in force."""
        self.settings = settings
        if self.control is not None:
            self._adopt(self.control.apply(settings))

    def note_pause(self, start_s: float, end_s: float) -> None:
        """An operator held the engine between two times of ``time.monotonic``."""
        if self.control is not None:
            self.control.clock.note_pause(start_s, end_s)

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
        if step is None or buffer is None or not step.batch.rows:
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
            contribution=self.contributions.get(layer_id),
        )
        step.note_layer(layer_id, int(selection.num_active), selection.retained_mass.numpy())
        return selection.topk_ids, selection.topk_weights

    # ----------------------------------------------------------- control path

    def run_batch(
        self, original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any
    ) -> Any:
        """The hook around ``Scheduler.run_batch``: one step, begun and ended."""
        step = self.begin(scheduler, batch)
        step.is_selecting = step.batch.flexible_rows > 0 and not self._is_full()
        if step.is_selecting and step.batch.phase is Phase.DECODE:
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
        if self.buffer is None:
            self.start()
        if self.ranks is None:
            self.open(scheduler)
        assert self.ranks is not None
        step = step_of(batch, scheduler.forward_ct + 1, self.default_tier, self.size_class_of)
        if step.batch.rows and self.control is not None:
            if self.settings.slo_ttft_ms is not None:
                step.waiting = Waiting.of(scheduler)
            if not self.ranks.is_alone:
                self.ranks.unforeseen += step.batch != self._foreseen
            elif step.batch != self.control.decided_for:
                self._adopt(self.control.plan(step.batch))
        return step

    def next_order(self) -> Order | None:
        """What rank 0 tells all ranks before the next batch is built, if anything."""
        if self.control is None or self.ranks is None or self.ranks.is_alone:
            return None
        batch = self._foreseen = batch_ahead(self._scheduler, self.default_tier, self.size_class_of)
        if batch.rows and batch != self.control.decided_for:
            self.control.plan(batch)
        return self.ranks.order(self.control.decision, self.settings)

    def obey(self, order: Order) -> None:
        """Put rank 0's order in force, on every rank."""
        if self.ranks is None:
            raise LynxError("rank 0 is ahead of this rank: its order came before the first step")
        self.ranks.obey(order, self.settings)
        self._put_in_force(order.decision, order.floor)

    def refuse_shadow(self, model_config: Any) -> str | None:
        """Why steps cannot run twice; None where they can."""
        return shadow.refusal(model_config)

    @contextmanager
    def all_experts(self) -> Iterator[None]:
        """Nothing is cut, and nothing is noted of what runs."""
        assert self.decision is not None
        assert self.buffer is not None
        step, self.step = self.step, None
        self.buffer.write(self._all_experts(), self.num_experts)
        try:
            yield
        finally:
            self.buffer.write(self.decision, self.num_experts)
            self.step = step

    def end(
        self, step: Step, now_s: float, *, ran_under: Decision, launch_s: float, is_after_idle: bool
    ) -> None:
        """Account for a step that finished at ``now_s`` and decide the next one's budget."""
        assert self.ranks is not None
        if not self.ranks.is_alone and len(step.num_active) == len(self.layer_ids):
            self.ranks.note(step.number, [step.num_active[layer] for layer in self.layer_ids])
        if self.control is not None:
            decision = self.control.end(
                step, now_s, ran_under=ran_under, launch_s=launch_s, is_after_idle=is_after_idle
            )
            self._adopt(decision)

    def size_class_of(self, rows: int) -> int:
        """Batch-size class of a step: the size of the graph that runs it, where there is one."""
        return size_class_of(rows, self.size_classes)

    def _adopt(self, decision: Decision) -> None:
        """Take what this rank decided; of several ranks, only its own order puts it in force."""
        assert self.ranks is not None
        if self.ranks.is_alone:
            self._put_in_force(decision, self.settings.floor)

    def _put_in_force(self, decision: Decision, floor: int) -> None:
        assert self.buffer is not None
        self.decision = decision
        self.buffer.set_floor(floor)
        self.buffer.write(decision, self.num_experts)

    def _all_experts(self) -> Decision:
        num_layers = len(self.layer_ids)
        return Decision(
            budget=(self.num_experts,) * num_layers,
            demand=1.0,
            expected_active=(float(self.num_experts),) * num_layers,
            reason=Reason.FULL,
            saturated=False,
            predicted_ms=0.0,
        )

    def _is_full(self) -> bool:
        return self.buffer is None or self.buffer.is_full


def count_active(topk_ids: torch.Tensor, num_experts: int) -> int:
    """Distinct routed experts in ``topk_ids`` [M, K] (CPU); shared and empty slots don't count."""
    is_used = np.zeros(num_experts, dtype=bool)
    ids = topk_ids.numpy()
    is_used[ids[(ids >= 0) & (ids < num_experts)]] = True
    return int(is_used.sum())
