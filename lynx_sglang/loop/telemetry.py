"""Counts of one scheduler process, for ``/server_info`` and the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lynx_controller import Decision, Pace
from lynx_sglang.loop.metrics import Metrics, Reading
from lynx_sglang.loop.shadow import ShadowTotals
from lynx_sglang.loop.step import Step
from lynx_sglang.loop.tier import Account, Tier
from lynx_sglang.settings import Settings


class Telemetry:
    """Counts what happened since the start; the metrics show the same where they are enabled."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()  # by phase
        self.decisions: Counter[str] = Counter()  # by reason
        self.floor_hits = 0  # layer-steps whose floors needed more than the cap
        self.decode_steps = 0
        self.active_experts_sum = 0.0  # over decode steps, of the mean over layers
        self.retained_mass_sum = 0.0
        self.covered_mass_sum = 0.0
        self.shadow = ShadowTotals()
        self.requests = dict.fromkeys(Tier, 0)  # finished
        self.tokens = {tier: Account() for tier in Tier}  # decoded
        self.store_failures = 0
        self.is_idle = True  # nothing runs or waits
        self.pace: Pace | None = None  # of the next prefill, where it is paced
        self._metrics: Metrics | None = None  # with --enable-metrics

    def open(self, scheduler: Any) -> None:
        """Create the metrics, with the labels of the scheduler's own."""
        reporter = scheduler.metrics_reporter
        if reporter.enable_metrics:
            self._metrics = Metrics.create(reporter.metrics_collector.labels)

    def idle(self, settings: Settings, unloaded: Decision) -> None:
        """Record that nothing runs or waits; see ``Reading.idle``."""
        self.is_idle = True
        if self._metrics is not None:
            self._metrics.read(Reading.idle(settings, unloaded))

    def finished(self, tier: Tier) -> None:
        """Count a request that has ended."""
        self.requests[tier] += 1
        if self._metrics is not None:
            self._metrics.tiers[tier].requests.inc()

    def decoded(self, tier: Tier, account: Account) -> None:
        """Add the tokens of one step."""
        self.tokens[tier].merge(account)
        if self._metrics is not None:
            self._metrics.decoded(tier, account)

    def store_failed(self, total: int) -> None:
        """Note the count of the store's failures since the start."""
        new, self.store_failures = total - self.store_failures, total
        if new and self._metrics is not None:
            self._metrics.store_failures.inc(new)

    def tiers(self) -> dict[str, dict[str, int]]:
        """JSON for ``/server_info``."""
        return {
            tier.value: {
                "requests": self.requests[tier],
                "decode_tokens": account.decode_tokens,
                "degraded_tokens": account.degraded_tokens,
            }
            for tier, account in self.tokens.items()
        }

    def step_ended(self, step: Step, step_ms: float) -> None:
        """Record a step of any phase."""
        self.is_idle = False
        self.steps[step.batch.phase.value] += 1
        if step.shadow is not None:
            self.shadow.add(step.shadow)
        if self._metrics is not None:
            self._metrics.step_ended(step.batch.phase.value, step_ms)
            if step.shadow is not None:
                self._metrics.shadowed(step.shadow)

    def decided(
        self, step: Step, caps: dict[int, int], decision: Decision, settings: Settings
    ) -> None:
        """Record a decode step, the caps by layer id that it ran under, and the next decision."""
        reading = Reading(
            step.waiting,
            decision,
            settings,
            active_experts=sum(step.num_active.values()) / len(caps),
            retained_mass=mean_mass(step.retained_mass),
            covered_mass=mean_mass(step.covered_mass),
            pace=self.pace,
            floor_hits=sum(step.num_active[layer] > cap for layer, cap in caps.items()),
        )
        self.decisions[decision.reason.value] += 1
        self.decode_steps += 1
        self.floor_hits += reading.floor_hits
        self.active_experts_sum += reading.active_experts
        self.retained_mass_sum += reading.retained_mass
        self.covered_mass_sum += reading.covered_mass
        if self._metrics is not None:
            self._metrics.decided(reading)


def mean_mass(masses: Mapping[int, float]) -> float:
    """Mean over layers of the flexible rows' masses; 1 where nothing was selected."""
    return sum(masses.values()) / len(masses) if masses else 1.0
