"""One rank's loop over the scheduler's steps: decide, run, account.

Data path, per layer: ``select`` reads the buffer and edits the routing.
Control path, per step: ``begin`` describes the batch and decides for it, ``end`` accounts for what
it cost and decides for the next one. Decisions go into the buffer.
Of several ranks rank 0 alone decides; see ``ranks``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lynx_controller import Decision, Phase, Reason
from lynx_sglang.errors import LynxError
from lynx_sglang.loop.buffer import Buffer
from lynx_sglang.loop.control import Control
from lynx_sglang.loop.layers import MoeLayers
from lynx_sglang.loop.prefill import Pacing, Prefill
from lynx_sglang.loop.ranks import Order, Ranks
from lynx_sglang.loop.scores import RouterScores
from lynx_sglang.loop.shadow import Sampler
from lynx_sglang.loop.step import SIZE_CLASSES, Step, batch_ahead, size_class_of, step_of
from lynx_sglang.loop.telemetry import Telemetry
from lynx_sglang.loop.tier import Tier
from lynx_sglang.loop.waiting import Waiting
from lynx_sglang.settings import Settings

logger = logging.getLogger(__name__)

Routing = tuple[torch.Tensor, torch.Tensor]  # topk_ids [M, K], topk_weights [M, K]


class Runtime(ABC):
    """The loop, complete before its first step; ``cpu`` and ``gpu`` say how a step runs."""

    def __init__(
        self,
        settings: Settings,
        layers: MoeLayers,
        buffer: Buffer,
        size_classes: Sequence[int] = SIZE_CLASSES,
    ) -> None:
        """
        Args:
            size_classes: batch sizes that steps are counted under, ascending: those of the decode
                graphs where there are any.
        """
        self.settings, self.layers, self.buffer = settings, layers, buffer
        self.size_classes = size_classes
        self.ranks = Ranks.of_process()
        self.telemetry = Telemetry()
        self.step: Step | None = None  # in the forward that runs now
        self._sampler = Sampler()
        self._scheduler: Any = None  # from the first step on
        self._put_in_force(full_quality(layers), settings.floor)
        self.control: Control | None = None  # on rank 0 alone
        if self.ranks.leads:
            self.control = Control(settings, layers, self.telemetry, self.ranks.replica)
            self._adopt(self.control.decision)

    @property
    def default_tier(self) -> Tier:
        return Tier(self.settings.default_tier)

    def size_class_of(self, rows: int) -> int:
        """Batch-size class of a step: the size of the graph that runs it, where there is one."""
        return size_class_of(rows, self.size_classes)

    # ---------------------------------------------------------------- forms

    @abstractmethod
    def select(
        self,
        layer_id: int,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        scores: RouterScores,
        correction_bias: torch.Tensor | None,
        *,
        is_final: bool = True,
    ) -> Routing | None:
        """One layer's routing after selection; None leaves the routing as it is.

        Args:
            topk_ids, topk_weights: [M, K], SGLang's own.
            scores: makes the router scores [M, E] float32, where they are needed.
            correction_bias: [E] float32, of routers that add one before top-k.
            is_final: SGLang edits the routing no further before the experts run.
        """

    @abstractmethod
    def run_batch(
        self, original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any
    ) -> Any:
        """Run ``Scheduler.run_batch`` as one step."""

    @abstractmethod
    def run_twice(self, step: Step, forward: Callable[[], Any]) -> Any:
        """Run a sampled step's forward with every expert, then as it is served; compare both.

        Args:
            forward: one pass of the model; returns SGLang's ``ModelRunnerOutput``.

        Returns:
            The served pass' output.
        """

    # ---------------------------------------------------------------- a step

    def begin(self, scheduler: Any, batch: Any) -> Step:
        """Describe a batch that is about to run, and decide for it where it is a new one."""
        if self._scheduler is None:
            self._attach(scheduler)
        step = step_of(batch, scheduler.forward_ct + 1, self.default_tier, self.size_class_of)
        is_paced = self.control is not None and self.control.pacing is not None
        if is_paced and step.batch.phase is Phase.PREFILL:
            step.prefill = Prefill.of(batch)
        if step.batch.rows and self.control is not None:
            if self.settings.slo_ttft_ms is not None:
                step.waiting = Waiting.of(scheduler)
            if not self.ranks.is_alone:
                self.ranks.note_batch(step.batch)
            elif step.batch != self.control.decided_for:
                self._adopt(self.control.plan(step.batch))
        return step

    def end(
        self, step: Step, now_s: float, *, ran_under: Decision, launch_s: float, is_after_idle: bool
    ) -> None:
        """Account for a step that finished at ``now_s`` and decide for the next one.

        Args:
            ran_under: the decision that was in force when the step was launched.
            launch_s: time of the launch, in seconds on the clock of ``now_s``.
            is_after_idle: the scheduler had nothing to run before this step.
        """
        if not self.ranks.is_alone and len(step.num_active) == len(self.layers):
            self.ranks.note(step.number, [step.num_active[layer] for layer in self.layers.ids])
        if self.control is not None:
            decision = self.control.end(
                step, now_s, ran_under=ran_under, launch_s=launch_s, is_after_idle=is_after_idle
            )
            self._adopt(decision)

    def note_pause(self, start_s: float, end_s: float) -> None:
        """An operator held the engine between two times of ``time.monotonic``."""
        if self.control is not None:
            self.control.clock.note_pause(start_s, end_s)

    def note_idle(self) -> None:
        """Nothing runs or waits; called over and over while that is so."""
        if not self.telemetry.is_idle:
            self.telemetry.idle(self.settings, unloaded(self.settings, self.layers))

    def is_sampled(self, step: Step) -> bool:
        """Whether a step that is about to run is to run twice; counts it where it is capped.

        The same on every rank: it follows from orders and settings, which all ranks share.
        """
        is_capped = step.is_selecting and step.batch.flexible_rows > 0 and not self.buffer.is_full
        is_decode = step.batch.phase is Phase.DECODE
        return is_capped and is_decode and self._sampler.pick(self.settings.shadowed_share)

    # ------------------------------------------------------------- decisions

    def apply(self, settings: Settings) -> None:
        """Put changed settings in force."""
        self.settings = settings
        if self.control is not None:
            self._adopt(self.control.apply(settings))
            if self.telemetry.is_idle:
                self.telemetry.idle(settings, unloaded(settings, self.layers))

    def order(self) -> Order | None:
        """On rank 0 of several: news for all ranks before the next batch is built; None if none."""
        if self.control is None or self.ranks.is_alone or self._scheduler is None:
            return None
        batch = batch_ahead(self._scheduler, self.default_tier, self.size_class_of)
        self.ranks.foreseen = batch
        if batch.rows and batch != self.control.decided_for:
            self.control.plan(batch)
        return self.ranks.order(self.control.decision, self.settings)

    def obey(self, order: Order) -> None:
        """Put rank 0's order in force, on every rank.

        Raises:
            DivergedError: this rank has other settings, or ranks keep running other experts.
        """
        if self._scheduler is None:
            raise LynxError("an order of rank 0 came before this rank's first step")
        self.ranks.obey(order, self.settings)
        is_parted = self.ranks.is_parted
        self._put_in_force(full_quality(self.layers) if is_parted else order.decision, order.floor)

    def _attach(self, scheduler: Any) -> None:
        """Take labels of metrics and the model's configuration from the scheduler."""
        self._scheduler = scheduler
        if self.control is None:
            logger.info("lynx follows rank 0, on rank %d of %d", self.ranks.rank, self.ranks.size)
            return
        self.telemetry.open(scheduler)
        self.telemetry.idle(self.settings, unloaded(self.settings, self.layers))
        if self.settings.store is not None:
            self.control.join(
                self.settings.store, scheduler.model_config.hf_config, self.ranks.spread
            )
        if self.settings.prefill_pacing != "off":
            is_on = self.settings.prefill_pacing == "on"
            self.control.pacing = Pacing(scheduler, is_on=is_on)
        self.control.log_start(self.ranks.size)

    def _adopt(self, decision: Decision) -> None:
        """Put a decision of this rank's in force; of several ranks, only an order does that."""
        if self.ranks.is_alone:
            self._put_in_force(decision, self.settings.floor)

    def _put_in_force(self, decision: Decision, floor: int) -> None:
        self.decision = decision
        self.buffer.set_floor(floor)
        self.buffer.write(decision, self.layers.num_experts)


def unloaded(settings: Settings, layers: MoeLayers) -> Decision:
    """The decision without load: full quality, except for an operator's fixed settings."""
    is_full = settings.demand == "auto" or settings.budget == "full"
    return replace(
        full_quality(layers),
        budget=(settings.cap(layers.num_experts),) * len(layers),
        demand=1.0 if is_full else float(settings.demand),
        share=1.0 if settings.share == "auto" else float(settings.share),
    )


def full_quality(layers: MoeLayers) -> Decision:
    """The decision that changes no routing."""
    return Decision(
        budget=(layers.num_experts,) * len(layers),
        demand=1.0,
        expected_active=(float(layers.num_experts),) * len(layers),
        reason=Reason.FULL,
        saturated=False,
        predicted_ms=0.0,
    )
