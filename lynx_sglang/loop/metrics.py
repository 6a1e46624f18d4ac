"""Lynx's Prometheus metrics: each is defined once, here.

They follow SGLang's conventions: ``sglang:lynx_*``, base units, gauges ``mostrecent``, SGLang's
labels. A gauge is an entry of ``GAUGES``. A counter or histogram is a field of ``Metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lynx_controller import Decision, Pace, Reason
from lynx_sglang.loop.shadow import KL_BUCKETS, Comparison
from lynx_sglang.loop.tier import Account, Tier
from lynx_sglang.loop.waiting import Waiting
from lynx_sglang.settings import Settings

PREFIX = "sglang:"
STEP_BUCKETS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Reading:
    """A decode step that has ended, and the decision after it; or an idle server."""

    waiting: Waiting | None  # with a TTFT target
    decision: Decision
    settings: Settings
    active_experts: float  # T, mean over layers
    retained_mass: float  # of flexible rows, mean over layers
    covered_mass: float  # so, with what sketches stand in for
    floor_hits: int  # layers whose floors needed more experts than the cap
    pace: Pace | None = None  # of the next prefill, where it is paced

    @classmethod
    def idle(cls, settings: Settings, unloaded: Decision) -> Reading:
        """Nothing runs: no experts in use, nothing lost, no limit missed.

        Args:
            unloaded: the decision that holds without load.
        """
        return cls(
            None,
            unloaded,
            settings,
            active_experts=0.0,
            retained_mass=1.0,
            covered_mass=1.0,
            floor_hits=0,
        )


@dataclass(frozen=True, slots=True)
class GaugeSpec:
    """A gauge's name without ``PREFIX``, its HELP text, and its value at a reading."""

    name: str
    about: str
    value: Callable[[Reading], float]


GAUGES = (
    GaugeSpec(
        "lynx_slo_itl_seconds",
        "Inter-token latency target; 0 if there is none.",
        lambda at: (at.settings.slo_itl_ms or 0.0) / 1e3,
    ),
    GaugeSpec(
        "lynx_slo_tpot_seconds",
        "TPOT target; 0 if there is none.",
        lambda at: (at.settings.slo_tpot_ms or 0.0) / 1e3,
    ),
    GaugeSpec(
        "lynx_slo_ttft_seconds",
        "TTFT target (queueing time only); 0 if there is none.",
        lambda at: (at.settings.slo_ttft_ms or 0.0) / 1e3,
    ),
    GaugeSpec(
        "lynx_queue_seconds",
        "Queueing time of the oldest waiting request; 0 without a TTFT target.",
        lambda at: 0.0 if at.waiting is None else at.waiting.oldest_ms / 1e3,
    ),
    GaugeSpec(
        "lynx_share",
        "Experts that the next step may use, divided by the experts that it would use uncapped.",
        lambda at: at.decision.share,
    ),
    GaugeSpec(
        "lynx_demand",
        "Share of its routing mass that each token's experts must hold before the cap; 1 if unset.",
        lambda at: at.decision.demand,
    ),
    GaugeSpec(
        "lynx_budget_experts",
        "Cap on the distinct experts of a layer, mean over layers.",
        lambda at: sum(at.decision.budget) / len(at.decision.budget),
    ),
    GaugeSpec(
        "lynx_active_experts",
        "Distinct experts of a layer in the last decode step, mean over layers; 0 while idle.",
        lambda at: at.active_experts,
    ),
    GaugeSpec(
        "lynx_retained_mass",
        "Share of their top-k routing mass that flexible rows retained, mean over layers.",
        lambda at: at.retained_mass,
    ),
    GaugeSpec(
        "lynx_covered_mass",
        "Retained mass, and that of lost experts which their sketches stand in for.",
        lambda at: at.covered_mass,
    ),
    GaugeSpec(
        "lynx_saturated",
        "1 while the SLO cannot be met within the quality floor; 0 while idle.",
        lambda at: float(at.decision.saturated),
    ),
    GaugeSpec(
        "lynx_predicted_step_seconds",
        "Predicted time of the next decode step.",
        lambda at: at.decision.predicted_ms / 1e3,
    ),
    GaugeSpec(
        "lynx_max_quality_loss_nats",
        "Quality limit: mean KL to the full model, nats per token; 0 if there is none.",
        lambda at: at.settings.max_quality_loss or 0.0,
    ),
    GaugeSpec(
        "lynx_guard_share",
        "Smallest share that the quality limit allows; 0 without a quality limit.",
        lambda at: at.decision.guard_share,
    ),
    GaugeSpec(
        "lynx_guard_binds",
        "1 while the quality limit keeps the cap above the one that the SLO needs.",
        lambda at: float(at.decision.reason is Reason.GUARD),
    ),
    GaugeSpec(
        "lynx_prefill_chunk_tokens",
        "Paced prefill: most tokens of the next chunk; 0 without --lynx-prefill-pacing.",
        lambda at: 0.0 if at.pace is None else at.pace.chunk_tokens,
    ),
    GaugeSpec(
        "lynx_prefill_interval_steps",
        "Paced prefill: decode steps before the next one; 0 at SGLang's own pace.",
        lambda at: 0.0 if at.pace is None else at.pace.interval,
    ),
)


@dataclass(frozen=True, slots=True)
class TierCounters:
    """Counters of one tier's requests."""

    requests: Any
    decode_tokens: Any
    degraded_tokens: Any


@dataclass(frozen=True, slots=True)
class Metrics:
    """The instruments of one scheduler process, made once."""

    labels: dict[str, str]
    gauges: tuple[tuple[GaugeSpec, Any], ...]
    step_seconds: Any  # also labelled by phase
    decisions: Any  # also labelled by reason
    floor_hits: Any
    failures: Any
    store_failures: Any
    tiers: Mapping[Tier, TierCounters]
    shadow_steps: Any
    shadow_agreements: Any
    shadow_kl: Any

    @classmethod
    def create(cls, labels: dict[str, str], registry: Any = None) -> Metrics:
        """Register every metric under SGLang's ``labels``; None: in the process's registry.

        Call it after SGLang has set PROMETHEUS_MULTIPROC_DIR: the import reads it.
        """
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        registry = registry or REGISTRY

        def counter(name: str, about: str, *more: str) -> Any:
            names = [*labels, *more]
            return Counter(PREFIX + name, about, labelnames=names, registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...], *more: str) -> Any:
            names = [*labels, *more]
            return Histogram(
                PREFIX + name, about, labelnames=names, buckets=buckets, registry=registry
            )

        def gauge(spec: GaugeSpec) -> Any:
            made = Gauge(
                PREFIX + spec.name,
                spec.about,
                labelnames=[*labels],
                multiprocess_mode="mostrecent",
                registry=registry,
            )
            return made.labels(**labels)

        requests, decode_tokens, degraded_tokens = (
            counter(f"lynx_{name}_total", about, "tier")
            for name, about in (
                ("requests", "Finished requests, by tier."),
                ("decode_tokens", "Decoded tokens, by tier of their request."),
                ("degraded_tokens", "Decoded tokens that lost routing mass, by tier."),
            )
        )
        decisions = counter("lynx_decisions_total", "Controller decisions, by reason.", "reason")
        for reason in Reason:
            decisions.labels(**labels, reason=reason.value)  # shown from the start, as 0
        return cls(
            labels=labels,
            gauges=tuple((spec, gauge(spec)) for spec in GAUGES),
            step_seconds=histogram(
                "lynx_step_seconds",
                "Time from the end of one forward to the end of the next, by phase.",
                STEP_BUCKETS_S,
                "phase",
            ),
            decisions=decisions,
            floor_hits=counter(
                "lynx_floor_hits_total",
                "Layer-steps in which the rows' floors needed more than the cap.",
            ).labels(**labels),
            failures=counter(
                "lynx_controller_failures_total", "Controller errors; each sets full quality."
            ).labels(**labels),
            store_failures=counter(
                "lynx_store_failures_total", "Attempts to reach the store that failed."
            ).labels(**labels),
            tiers={
                tier: TierCounters(
                    requests.labels(**labels, tier=tier.value),
                    decode_tokens.labels(**labels, tier=tier.value),
                    degraded_tokens.labels(**labels, tier=tier.value),
                )
                for tier in Tier
            },
            shadow_steps=counter(
                "lynx_shadow_steps_total",
                "Decode steps that also ran as a shadow pass with every expert.",
            ).labels(**labels),
            shadow_agreements=counter(
                "lynx_shadow_agreements_total",
                "Shadowed rows whose top-1 token matches the full model's.",
            ).labels(**labels),
            shadow_kl=histogram(
                "lynx_shadow_kl_nats",
                "KL(full model || served) of the next token, per flexible row of shadowed steps.",
                KL_BUCKETS,
            ).labels(**labels),
        )

    def step_ended(self, phase: str, step_ms: float) -> None:
        self.step_seconds.labels(**self.labels, phase=phase).observe(step_ms / 1e3)

    def shadowed(self, seen: Comparison) -> None:
        self.shadow_steps.inc()
        self.shadow_agreements.inc(sum(seen.agrees))
        for kl in seen.kl:
            self.shadow_kl.observe(kl)

    def decoded(self, tier: Tier, account: Account) -> None:
        """Count tokens of one step."""
        self.tiers[tier].decode_tokens.inc(account.decode_tokens)
        self.tiers[tier].degraded_tokens.inc(account.degraded_tokens)

    def read(self, reading: Reading) -> None:
        """Set every gauge."""
        for spec, gauge in self.gauges:
            gauge.set(spec.value(reading))

    def decided(self, reading: Reading) -> None:
        self.read(reading)
        reason = reading.decision.reason
        self.decisions.labels(**self.labels, reason=reason.value).inc()
        self.floor_hits.inc(reading.floor_hits)
        if reason is Reason.FAILED:
            self.failures.inc()
