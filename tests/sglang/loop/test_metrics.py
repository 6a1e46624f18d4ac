"""Every metric is registered once, and a step moves the ones that it concerns."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY, generate_latest

from lynx_controller import Batch, Decision, Pace, Phase, Reason
from lynx_controller.decide.pacing import Rule
from lynx_sglang.loop.layers import MoeLayers
from lynx_sglang.loop.metrics import GAUGES, PREFIX, Metrics
from lynx_sglang.loop.runtime import unloaded
from lynx_sglang.loop.shadow import Comparison
from lynx_sglang.loop.step import Step
from lynx_sglang.loop.telemetry import Telemetry
from lynx_sglang.loop.tier import Account, Tier
from lynx_sglang.loop.waiting import Waiting
from lynx_sglang.settings import Settings

LABELS = {"model_name": "m", "tp_rank": "0"}
CAPS = {0: 4, 1: 6}
DECISION = Decision(
    budget=(4, 6),
    demand=1.0,
    expected_active=(8.0, 8.0),
    reason=Reason.GUARD,
    saturated=True,
    predicted_ms=12.0,
)


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics.create(LABELS)


@pytest.fixture
def telemetry(metrics: Metrics) -> Telemetry:
    telemetry = Telemetry()
    telemetry._metrics = metrics
    return telemetry


def shown(name: str, **more: str) -> Any:
    return REGISTRY.get_sample_value(f"{PREFIX}lynx_{name}", {**LABELS, **more})


def step(**values: Any) -> Step:
    made = Step(
        number=1,
        batch=Batch(Phase.DECODE, 2, 2, 2),
        row_class=torch.full((2,), 2, dtype=torch.uint8),
        requests=["a", "b"],
        first_decode_row=0,
        kv_tokens=9,
        waiting=Waiting(3, 250.0),
        num_active={0: 5, 1: 6},
        **values,
    )
    masses = np.array([[0.5, 0.7], [0.9, 0.9]])
    made.note_masses([0, 1], masses, masses + 0.1)
    return made


def test_a_decode_step_sets_every_gauge(telemetry: Telemetry) -> None:
    limits = Settings(slo_itl_ms=20.0, slo_tpot_ms=15.0, slo_ttft_ms=500.0, max_quality_loss=0.01)
    telemetry.pace = Pace(96, 1, Rule.FIT)
    telemetry.decided(step(), CAPS, DECISION, limits)
    expected = {
        "slo_itl_seconds": 0.02,
        "slo_tpot_seconds": 0.015,
        "slo_ttft_seconds": 0.5,
        "queue_seconds": 0.25,
        "share": DECISION.share,
        "demand": 1.0,
        "budget_experts": 5.0,
        "active_experts": 5.5,
        "retained_mass": 0.75,
        "covered_mass": 0.85,
        "saturated": 1.0,
        "predicted_step_seconds": 0.012,
        "max_quality_loss_nats": 0.01,
        "guard_share": DECISION.guard_share,
        "guard_binds": 1.0,
        "prefill_chunk_tokens": 96.0,
        "prefill_interval_steps": 1.0,
    }
    names = [gauge.name.removeprefix("lynx_") for gauge in GAUGES]
    assert {name: shown(name) for name in names} == pytest.approx(expected)
    assert shown("decisions_total", reason="guard") == 1.0
    assert shown("floor_hits_total") == 1.0
    telemetry.decided(step(), CAPS, DECISION, Settings())
    assert (shown("slo_itl_seconds"), shown("max_quality_loss_nats")) == (0.0, 0.0)


def test_a_failure_of_the_controller_is_counted(telemetry: Telemetry) -> None:
    before = shown("controller_failures_total")
    failed = dataclasses.replace(DECISION, reason=Reason.FAILED)
    telemetry.decided(step(), CAPS, failed, Settings())
    assert shown("controller_failures_total") == before + 1


def test_a_shadowed_step_counts_its_rows(telemetry: Telemetry) -> None:
    telemetry.step_ended(step(shadow=Comparison([0.001, 0.2], [True, False])), 15.0)
    assert shown("step_seconds_sum", phase="decode") == pytest.approx(0.015)
    assert (shown("shadow_steps_total"), shown("shadow_agreements_total")) == (1.0, 1.0)
    assert (shown("shadow_kl_nats_count"), shown("shadow_kl_nats_sum")) == (2.0, 0.201)
    assert telemetry.shadow.rows == 2


def test_gauges_of_an_idle_server_tell_of_no_load_and_of_the_settings(
    telemetry: Telemetry,
) -> None:
    telemetry.decided(step(), CAPS, DECISION, Settings(slo_itl_ms=3.0))
    unloaded = dataclasses.replace(DECISION, budget=(64, 64), reason=Reason.FULL, saturated=False)
    telemetry.idle(Settings(slo_itl_ms=20.0), unloaded)
    idle = {
        "slo_itl_seconds": 0.02, "queue_seconds": 0.0, "active_experts": 0.0,
        "retained_mass": 1.0, "covered_mass": 1.0, "saturated": 0.0, "guard_binds": 0.0,
        "budget_experts": 64.0,
    }  # fmt: skip
    assert {name: shown(name) for name in idle} == idle
    assert telemetry.is_idle
    telemetry.step_ended(step(), 15.0)
    assert not telemetry.is_idle


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ({}, (64, 1.0, 1.0)),
        ({"budget": 16}, (16, 1.0, 1.0)),
        ({"budget": "25%", "demand": 0.5}, (16, 0.5, 1.0)),
        ({"budget": "full", "demand": 0.5}, (64, 1.0, 1.0)),
        ({"share": 0.5}, (64, 1.0, 0.5)),
    ],
)
def test_without_load_the_operator_alone_cuts(
    fixed: dict[str, Any], expected: tuple[int, float, float]
) -> None:
    decision = unloaded(Settings(**fixed), MoeLayers([0, 1], 64, 4))
    assert (decision.budget[1], decision.demand, decision.share) == expected
    assert not decision.saturated


def test_requests_and_tokens_count_by_tier(telemetry: Telemetry) -> None:
    assert shown("decode_tokens_total", tier="exact") == 0.0  # before the first
    account = Account()
    for mass in (1.0, 0.5, 0.25):
        account.add(mass, mass)
    telemetry.decoded(Tier.FLEXIBLE, account)
    telemetry.finished(Tier.FLEXIBLE)
    telemetry.finished(Tier.EXACT)
    seen = {
        tier: [
            shown(f"{name}_total", tier=tier)
            for name in ("requests", "decode_tokens", "degraded_tokens")
        ]
        for tier in ("exact", "flexible")
    }
    assert seen == {"exact": [1.0, 0.0, 0.0], "flexible": [1.0, 3.0, 2.0]}
    assert telemetry.tiers()["flexible"] == {
        "requests": 1, "decode_tokens": 3, "degraded_tokens": 2,
    }  # fmt: skip


def test_failures_of_the_store_count_once(telemetry: Telemetry) -> None:
    for total in (0, 2, 2, 3):
        telemetry.store_failed(total)
    assert shown("store_failures_total") == 3.0


def test_names_follow_the_rules_of_prometheus(metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    text = generate_latest(REGISTRY)
    ours = text.decode().replace(f" {PREFIX}", " ").replace(f"\n{PREFIX}", "\n")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=ours, capture_output=True, text=True
    )
    assert "lynx_" not in checked.stdout + checked.stderr


def test_names_and_help_texts_are_for_people() -> None:
    assert len({gauge.name for gauge in GAUGES}) == len(GAUGES)
    assert all(gauge.about[-1] == "." and len(gauge.about) < 100 for gauge in GAUGES)
