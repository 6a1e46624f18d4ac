"""The control path of a replica, on rank 0: step costs in, decisions out.

It owns the replica's clock, log, metrics and store. It writes to no buffer: ``runtime`` puts its
decisions in force, through ``ranks`` where there are several.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lynx_controller import Batch, Controller, ControllerConfig, Decision, Observation, Slo
from lynx_controller.fleet.replica import Replica
from lynx_controller.log.decision_log import Log, LoggedController
from lynx_controller.pacer import slo_of_decoding
from lynx_sglang import calibration
from lynx_sglang.loop import membership, tier
from lynx_sglang.loop.clock import StepClock
from lynx_sglang.loop.layers import MoeLayers
from lynx_sglang.loop.prefill import Pacing, Prefill
from lynx_sglang.loop.step import Step
from lynx_sglang.loop.telemetry import Telemetry
from lynx_sglang.settings import Settings, describe_slo

logger = logging.getLogger(__name__)


class Control:
    """Feeds one replica's controller and reports its decisions."""

    def __init__(
        self,
        settings: Settings,
        layers: MoeLayers,
        telemetry: Telemetry,
        replica: int | None = None,
    ) -> None:
        """
        Args:
            replica: number of this replica in its server; None where it is the only one.
        """
        self.layers, self.telemetry = layers, telemetry
        self.replica: Replica | None = None  # of a fleet, with --lynx-store
        self.pacing: Pacing | None = None  # with --lynx-prefill-pacing, from the first step on
        self._last_prefill: Prefill | None = None
        self.clock = StepClock()
        measured = None
        if settings.calibration is not None:
            measured = calibration.load(settings.calibration, settings.policy)
        self.has_sketches = measured is not None and measured.sketches is not None
        make: Callable[..., Controller] = Controller
        if settings.decision_log is not None:
            log = Log(log_of(Path(settings.decision_log), replica))
            make = partial(LoggedController, log)
        self.controller = make(
            slo=self._slo(settings),
            num_layers=len(layers),
            num_experts=layers.num_experts,
            top_k=layers.top_k,
            config=ControllerConfig(min_retained_mass=settings.min_retained_mass),
            layer_offsets=None if measured is None else measured.layer_offsets,
        )
        self.decided_for = Batch.of(1)  # the batch of ``decision``
        self.decision = self.apply(settings)

    def join(self, store: str, hf_config: Any, spread: str) -> None:
        """Become a replica of the fleet that shares ``store``."""
        self.replica = membership.join(store, hf_config, spread)

    def apply(self, settings: Settings) -> Decision:
        """Decide again under changed settings."""
        self.settings = settings
        budget = None if settings.budget == "auto" else settings.cap(self.layers.num_experts)
        demand = None if settings.demand == "auto" else float(settings.demand)
        if settings.budget == "full":
            demand = 1.0
        self.controller.set_slo(self._slo(settings))
        self.controller.set_min_retained_mass(settings.min_retained_mass)
        self.controller.set_max_quality_loss(settings.max_quality_loss)
        share = None if settings.share == "auto" else float(settings.share)
        self.controller.override(budget=budget, demand=demand, share=share)
        return self.plan(self.decided_for)

    def plan(self, batch: Batch) -> Decision:
        """Decide for a batch that is about to run."""
        self.decided_for = batch
        self.decision = self.controller.plan(batch)
        return self.decision

    def end(
        self, step: Step, now_s: float, *, ran_under: Decision, launch_s: float, is_after_idle: bool
    ) -> Decision:
        """Account for a step that finished at ``now_s`` and decide for the next one.

        See ``Runtime.end`` for the arguments.
        """
        step_ms, itl_ms = self.clock.end(
            now_s,
            launch_s,
            is_after_idle=is_after_idle,
            streams=[request.rid for request in step.requests],
        )
        self.telemetry.step_ended(step, step_ms)
        if self.pacing is not None:
            self._pace(self.pacing, step, step_ms, itl_ms)
            if self.pacing.is_on:
                itl_ms = step_ms  # pacing answers for the time that gaps lose to prefill
        if not step.batch.rows:
            return self.decision
        self._account(step)
        if len(step.num_active) < len(self.layers):
            return self.decision  # the forward did not reach every layer
        # Streams wait for a shadow pass, but it is not part of a step's cost.
        seen = self._observation(step, ran_under, step_ms - step.shadow_ms, itl_ms)
        if self.replica is not None:
            self.replica.note(seen, self.controller)
            self.telemetry.store_failed(self.replica.failures)
        self.decision = self.controller.step(seen)
        self.decided_for = step.batch
        caps = dict(zip(self.layers.ids, ran_under.budget, strict=True))
        self.telemetry.decided(step, caps, self.decision, self.settings)
        return self.decision

    def _slo(self, settings: Settings) -> Slo:
        """The controller's: beside pacing that of decoding alone."""
        return slo_of_decoding(settings.slo) if settings.prefill_pacing == "on" else settings.slo

    def _pace(self, pacing: Pacing, step: Step, step_ms: float, itl_ms: float) -> None:
        """Learn from a step of either kind, and set the pace of the next prefill."""
        if step.prefill is not None:
            self._last_prefill = step.prefill
            pacing.pacer.prefilled(step.prefill.tokens, step.prefill.prefix, step_ms)
        elif step.batch.rows:
            pacing.pacer.decoded(self.settings.slo, step.batch.rows, itl_ms)
        slo, prefix = self.settings.slo, pacing.prefix(self._last_prefill)
        wait_ms = 0.0 if slo.ttft_ms is None else pacing.wait_ms()
        pace = pacing.pacer.decide(self.controller, slo, self.decided_for, prefix, wait_ms)
        pacing.put_in_force(pace)
        self.telemetry.pace = pace

    def _account(self, step: Step) -> None:
        """Add each decode row's retained mass to the accounts of its request and its tier."""
        masses = covered = [1.0] * len(step.requests)
        if step.row_retained_mass is not None and step.row_covered_mass is not None:
            masses = (step.row_retained_mass / len(self.layers)).tolist()
            covered = (step.row_covered_mass / len(self.layers)).tolist()
        default = tier.Tier(self.settings.default_tier)
        of_step = {name: tier.Account() for name in tier.Tier}
        for request, *of_row in zip(step.requests, masses, covered, strict=True):
            mass, with_sketches = (min(1.0, each) for each in of_row)
            tier.account_of(request).add(mass, with_sketches)
            of_step[tier.tier_of(request, default)].add(mass, with_sketches)
        for name, account in of_step.items():
            if account.decode_tokens:
                self.telemetry.decoded(name, account)

    def _observation(
        self, step: Step, ran_under: Decision, step_ms: float, itl_ms: float
    ) -> Observation:
        return Observation(
            step=step.number,
            batch=step.batch,
            step_ms=step_ms,
            itl_ms=itl_ms,
            active_experts=[step.num_active[layer] for layer in self.layers.ids],
            retained_mass=[step.covered_mass.get(layer, 1.0) for layer in self.layers.ids],
            kv_tokens=step.kv_tokens,
            queue=None if step.waiting is None else step.waiting.requests,
            queue_ms=None if step.waiting is None else step.waiting.oldest_ms,
            demand=ran_under.demand,
            budget_applied=ran_under.budget,
            shadow_kl=None if step.shadow is None else step.shadow.mean_kl,
            shadow_agreement=None if step.shadow is None else step.shadow.agreement,
        )

    def log_start(self, num_ranks: int) -> None:
        """Log that Lynx is active, with its settings: SGLang hides a plugin that failed to load."""
        settings = self.settings
        logger.info(
            "lynx is active: policy %s, %s, %s, budget %s, demand %s, retained mass >= %s, "
            "floor %d, %d MoE layers of %d experts, top-%d, %d rank%s",
            settings.policy,
            describe_slo(asdict(settings)),
            f"quality limit {settings.max_quality_loss:g} nats"
            if settings.max_quality_loss is not None
            else "no quality limit",
            settings.budget,
            settings.demand,
            settings.min_retained_mass,
            settings.floor,
            len(self.layers),
            self.layers.num_experts,
            self.layers.top_k,
            num_ranks,
            "" if num_ranks == 1 else "s",
        )
        if settings.calibration is not None:
            logger.info(
                "lynx is calibrated by %s: retained mass >= %g%s",
                settings.calibration,
                settings.min_retained_mass,
                ", with what its sketches stand in for" if self.has_sketches else "",
            )


def log_of(path: Path, replica: int | None) -> Path:
    """The decision log of one replica: ``log.jsonl``, or ``log.dp1.jsonl`` of several."""
    return path if replica is None else path.with_name(f"{path.stem}.dp{replica}{path.suffix}")
