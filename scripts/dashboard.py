"""Write the Grafana dashboard: ``python -m scripts.dashboard``.

Queries match SGLang's metric names with their colon, and with the underscore that a Prometheus
stores which negotiates OpenMetrics.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "examples/monitoring/grafana/dashboards/json/lynx-dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ONE = "job, instance, model_name"  # labels of one server
COLUMNS, WIDTH, HEIGHT = 3, 8, 8  # Grafana's grid is 24 wide


@dataclass(frozen=True, slots=True)
class Panel:
    """A time series. ``queries``: PromQL by legend."""

    title: str
    about: str
    unit: str  # Grafana's name
    queries: dict[str, str]


def metric(name: str, own: str = "") -> str:
    """Selector of one of SGLang's or Lynx's metrics; ``own``: a matcher of its own labels."""
    chosen = 'job=~"$job", instance=~"$instance"'
    return f'{{__name__=~"sglang[:_]{name}", {chosen}{own and ", " + own}}}'


def per_server(name: str, own: str = "") -> str:
    return f"max by ({ONE}) ({metric(name, own)})"


def rate(name: str, by: str = ONE, own: str = "") -> str:
    return f"sum by ({by}) (rate({metric(name, own)}[$__rate_interval]))"


def quantile(share: float, name: str, by: str = ONE, own: str = "") -> str:
    return f"histogram_quantile({share}, {rate(name + '_bucket', f'{by}, le', own)})"


SERVER = "{{instance}}"
PANELS = (
    Panel(
        "Inter-token latency against the SLO", "Gaps as the server sees them, all tiers.", "s",
        {
            f"p50 {SERVER}": quantile(0.5, "inter_token_latency_seconds"),
            f"p95 {SERVER}": quantile(0.95, "inter_token_latency_seconds"),
            f"SLO {SERVER}": per_server("lynx_slo_itl_seconds") + " > 0",
        },
    ),
    Panel(
        "Active experts of a layer", "Mean over layers, in the last decode step.", "short",
        {
            f"active {SERVER}": per_server("lynx_active_experts"),
            f"uncapped, estimated {SERVER}": per_server("lynx_active_experts")
            + f" / on ({ONE}) "
            + per_server("lynx_share"),
        },
    ),
    Panel(
        "Running and waiting requests", "SGLang's own.", "short",
        {
            f"running {SERVER}": per_server("num_running_reqs"),
            f"waiting {SERVER}": per_server("num_queue_reqs"),
        },
    ),
    Panel(
        "Share of the experts in use", "1: nothing is cut.", "percentunit",
        {
            f"share {SERVER}": per_server("lynx_share"),
            f"least that the quality limit allows {SERVER}": per_server("lynx_guard_share"),
        },
    ),
    Panel(
        "Decisions by reason", "Per second; docs/operate.md says what each reason means.", "ops",
        {"{{reason}}": rate("lynx_decisions_total", "reason")},
    ),
    Panel(
        "Limits that bind", "1 while the SLO is missed at the floor, or the quality limit binds.",
        "bool_yes_no",
        {
            f"saturated {SERVER}": per_server("lynx_saturated"),
            f"quality limit binds {SERVER}": per_server("lynx_guard_binds"),
        },
    ),
    Panel(
        "Retained routing mass", "Of flexible rows.", "percentunit",
        {SERVER: per_server("lynx_retained_mass")},
    ),
    Panel(
        "KL to the full model", "Nats per token, of shadowed steps.", "short",
        {
            f"mean {SERVER}": rate("lynx_shadow_kl_nats_sum")
            + " / "
            + rate("lynx_shadow_kl_nats_count"),
            f"limit {SERVER}": per_server("lynx_max_quality_loss_nats") + " > 0",
        },
    ),
    Panel(
        "Top-1 agreement with the full model", "Of shadowed tokens.", "percentunit",
        {
            SERVER: rate("lynx_shadow_agreements_total")
            + " / "
            + rate("lynx_shadow_kl_nats_count")
        },
    ),
    Panel(
        "Finished requests by tier", "Per second.", "reqps",
        {"{{tier}}": rate("lynx_requests_total", "tier")},
    ),
    Panel(
        "Decoded tokens by tier", "Per second, and how many of them lost routing mass.", "ops",
        {
            "{{tier}}": rate("lynx_decode_tokens_total", "tier"),
            "cut, {{tier}}": rate("lynx_degraded_tokens_total", "tier"),
        },
    ),
    Panel(
        "Step time", "From the end of one forward to the end of the next.", "s",
        {
            "p95 {{phase}}": quantile(0.95, "lynx_step_seconds", "phase"),
            f"predicted {SERVER}": per_server("lynx_predicted_step_seconds"),
        },
    ),
)  # fmt: skip


def panel(number: int, spec: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        for index, (legend, expr) in enumerate(spec.queries.items())
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": spec.title,
        "description": spec.about,
        "datasource": SOURCE,
        "gridPos": {
            "h": HEIGHT,
            "w": WIDTH,
            "x": number % COLUMNS * WIDTH,
            "y": number // COLUMNS * HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": spec.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def label_variable(name: str) -> dict[str, Any]:
    query = f'label_values({{__name__=~"sglang[:_]lynx_share"}}, {name})'
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    return {
        "uid": "lynx-sglang",
        "title": "Lynx for SGLang",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                label_variable("job"),
                label_variable("instance"),
            ]
        },
        "panels": [panel(number, spec) for number, spec in enumerate(PANELS)],
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text())
