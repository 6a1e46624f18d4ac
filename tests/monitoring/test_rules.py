"""The rules and the dashboard name metrics that exist, and alerts fire when provoked."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts import dashboard
from scripts.docs import reference

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "examples/monitoring"
RULES = MONITORING / "lynx-rules.yaml"
EXPRESSIONS = [
    *(rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"]
      for rule in group["rules"]),
    *(expr for panel in dashboard.PANELS for expr in panel.queries.values()),
]  # fmt: skip
SUFFIX = re.compile("_(bucket|sum|count)$")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    return found


def sglang_metrics() -> set[str]:
    """Names that SGLang's own collectors spell out."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "srt/observability/metrics_collector.py"
    return set(re.findall(r'"sglang:(\w+)"', source.read_text()))


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_metrics_exist_and_both_spellings_are_asked_for(expression: str) -> None:
    named = re.findall(r"sglang\[:_\](\w+)", expression)
    assert named
    assert len(named) == expression.count("__name__") == expression.count("sglang")
    families = {name.removeprefix("sglang:") for name, *_ in reference.metric_families()}
    assert {SUFFIX.sub("", name) for name in named} <= families | sglang_metrics()


def test_the_dashboard_is_the_one_that_its_program_writes() -> None:
    assert dashboard.DASHBOARD.read_text() == dashboard.text()


def test_every_reason_to_act_has_an_alert() -> None:
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    provoked = (Path(__file__).parent / "alerts.yaml").read_text()
    assert alerts == set(re.findall(r"alertname: (\w+)", provoked))


def test_prometheus_takes_the_rules_and_the_configuration(promtool: str) -> None:
    run(promtool, "check", "rules", "--lint-fatal", str(RULES))
    run(promtool, "check", "config", str(MONITORING / "prometheus.yaml"))


def test_alerts_fire_when_provoked(promtool: str, tmp_path: Path) -> None:
    provoked = (Path(__file__).parent / "alerts.yaml").read_text()
    file = tmp_path / "alerts.yaml"
    file.write_text(provoked.replace("RULES", str(RULES)))
    run(promtool, "test", "rules", str(file))


def run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
