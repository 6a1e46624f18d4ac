"""What Lynx tells and takes at run time: Prometheus, ``/server_info``, ``/set_internal_state``.

Metrics follow SGLang's conventions: ``sglang:lynx_*``, seconds, gauges ``mostrecent``, SGLang's
labels. They exist with ``--enable-metrics``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lynx_controller import Decision, Reason
from lynx_sglang.loop.shadow import KL_BUCKETS, Comparison, ShadowTotals
from lynx_sglang.loop.step import Step
from lynx_sglang.settings import Settings

GAUGES = {
    "lynx_slo_itl_seconds": "The inter-token latency to hold; 0 without an SLO.",
    "lynx_slo_ttft_seconds": "The time to first token to hold; 0 without one.",
    "lynx_queue_seconds": "Wait of the oldest request without a place; 0 without a TTFT to hold.",
    "lynx_share": "Experts that a step may use, over those that it would use uncut.",
    "lynx_demand": "Share of each token's routing mass that its experts must hold; 1 if not fixed.",
    "lynx_budget_experts": "Cap on the distinct experts of a layer, mean over layers.",
    "lynx_active_experts": "Distinct experts of a layer in the last decode step, mean over layers.",
    "lynx_retained_mass": "Top-k gate mass that flexible rows kept, mean over layers.",
    "lynx_saturated": "1 while the SLO cannot be met at the quality floor.",
    "lynx_predicted_step_seconds": "Predicted time of the next decode step.",
    "lynx_max_quality_loss_nats": "Mean KL to the full model that a token may lose; 0: no limit.",
    "lynx_guard_share": "Least share that the quality limit allows; 0 without one.",
    "lynx_guard_binds": "1 while the SLO would take a deeper cut than the quality limit allows.",
}
STEP_BUCKETS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5, 1.0)


class Telemetry:
    """Counts what happened; mirrors it to Prometheus when the server does."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()  # by phase
        self.decisions: Counter[str] = Counter()  # by reason
        self.floor_hits = 0  # layer-steps whose floors needed more than the cap
        self.decode_steps = 0
        self.active_experts_sum = 0.0  # over decoding steps, of the mean over layers
        self.retained_mass_sum = 0.0
        self.shadow = ShadowTotals()
        self._gauges: dict[str, Any] = {}
        self._steps_s: Any = None
        self._decisions: Any = None
        self._floor_hits: Any = None
        self._failures: Any = None
        self._shadow_steps: Any = None
        self._shadow_agreements: Any = None
        self._shadow_kl: Any = None
        self._labels: dict[str, Any] = {}

    def open(self, scheduler: Any) -> None:
        """Create the metrics, with the labels of the scheduler's own."""
        reporter = scheduler.metrics_reporter
        if not reporter.enable_metrics:
            return
        # Import after SGLang has set PROMETHEUS_MULTIPROC_DIR.
        from prometheus_client import Counter as PrometheusCounter
        from prometheus_client import Gauge, Histogram

        labels = self._labels = reporter.metrics_collector.labels
        for name, about in GAUGES.items():
            gauge = Gauge(
                f"sglang:{name}", about, labelnames=[*labels], multiprocess_mode="mostrecent"
            )
            self._gauges[name] = gauge.labels(**labels)
        self._steps_s = Histogram(
            "sglang:lynx_step_seconds",
            "Time from one forward's end to the next's, by phase.",
            labelnames=[*labels, "phase"],
            buckets=STEP_BUCKETS_S,
        )
        self._decisions = PrometheusCounter(
            "sglang:lynx_decisions_total",
            "Controller decisions, by reason.",
            labelnames=[*labels, "reason"],
        )
        self._shadow_kl = Histogram(
            "sglang:lynx_shadow_kl_nats",
            "KL of a flexible row's next token, full experts against served, on shadowed steps.",
            labelnames=[*labels],
            buckets=KL_BUCKETS,
        ).labels(**labels)
        for attribute, name, about in (
            ("_floor_hits", "floor_hits", "Layer-steps whose floors needed more than the cap."),
            ("_failures", "controller_failures", "Controller errors, answered by full quality."),
            ("_shadow_steps", "shadow_steps", "Decode steps that also ran with every expert."),
            (
                "_shadow_agreements",
                "shadow_agreements",
                "Rows of shadowed steps whose most probable token every expert would not change.",
            ),
        ):
            counter = PrometheusCounter(f"sglang:lynx_{name}_total", about, labelnames=[*labels])
            setattr(self, attribute, counter.labels(**labels))

    def step_ended(self, step: Step, step_ms: float) -> None:
        self.steps[step.batch.phase.value] += 1
        if self._steps_s is not None:
            self._steps_s.labels(**self._labels, phase=step.batch.phase.value).observe(
                step_ms / 1e3
            )
        if step.shadow is not None:
            self._shadowed(step.shadow)

    def _shadowed(self, seen: Comparison) -> None:
        self.shadow.add(seen)
        if self._shadow_kl is None:
            return
        self._shadow_steps.inc()
        self._shadow_agreements.inc(sum(seen.agrees))
        for kl in seen.kl:
            self._shadow_kl.observe(kl)

    def decided(
        self, step: Step, caps: dict[int, int], decision: Decision, settings: Settings
    ) -> None:
        """Record a decoding step, the caps by layer id that it ran under and the next decision."""
        num_layers = len(caps)
        hits = sum(step.num_active[layer] > cap for layer, cap in caps.items())
        reason = decision.reason.value
        active_experts = sum(step.num_active.values()) / num_layers
        retained_mass = mean_retained_mass(step)
        self.decisions[reason] += 1
        self.floor_hits += hits
        self.decode_steps += 1
        self.active_experts_sum += active_experts
        self.retained_mass_sum += retained_mass
        if not self._gauges:
            return
        values = {
            "lynx_slo_itl_seconds": (settings.slo_itl_ms or 0.0) / 1e3,
            "lynx_slo_ttft_seconds": (settings.slo_ttft_ms or 0.0) / 1e3,
            "lynx_queue_seconds": 0.0 if step.waiting is None else step.waiting.oldest_ms / 1e3,
            "lynx_share": decision.share,
            "lynx_demand": decision.demand,
            "lynx_budget_experts": sum(decision.budget) / num_layers,
            "lynx_active_experts": active_experts,
            "lynx_retained_mass": retained_mass,
            "lynx_saturated": float(decision.saturated),
            "lynx_predicted_step_seconds": decision.predicted_ms / 1e3,
            "lynx_max_quality_loss_nats": settings.max_quality_loss or 0.0,
            "lynx_guard_share": decision.guard_share,
            "lynx_guard_binds": float(decision.reason is Reason.GUARD),
        }
        for name, value in values.items():
            self._gauges[name].set(value)
        self._decisions.labels(**self._labels, reason=reason).inc()
        self._floor_hits.inc(hits)
        if reason == "failed":
            self._failures.inc()


def mean_retained_mass(step: Step) -> float:
    masses = step.retained_mass.values()
    return sum(masses) / len(masses) if masses else 1.0
