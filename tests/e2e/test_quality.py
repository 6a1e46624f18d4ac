"""A request gets plain SGLang's answer at full budget, its tier, and a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loadtests.server import Server

pytestmark = pytest.mark.e2e

Generate = Callable[..., list[Any]]
Settings = Callable[..., bool]
FULL = -1


def test_full_budget_is_plain_sglang(
    plain: Server, lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    assert settings(budget=FULL, slo_itl_ms=1)  # an SLO that nothing could hold changes nothing
    plain.post("/flush_cache", {})
    expected, got = generate(plain, prompts), generate(lynx, prompts)
    assert len(got) == 200
    different = [
        index
        for index, (ours, theirs) in enumerate(zip(got, expected, strict=True))
        if ours.tokens != theirs.tokens
    ]
    assert different == []
    assert all(answer.report is None for answer in expected)
    assert not any(answer.report["degraded"] for answer in got)


def test_each_request_reports_what_it_lost(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    assert settings(demand=0.5)
    for answer in generate(lynx, prompts[:8]):
        report = answer.report
        assert report["tier"] == "flexible"
        assert report["degraded"]
        # The first token is the prefill's, which is never cut.
        assert report["decode_tokens"] == len(answer.tokens) - 1
        assert 0 < report["degraded_tokens"] <= report["decode_tokens"]
        assert 0.5 <= report["retained_mass"] < 1.0


def test_exact_requests_keep_their_quality_in_a_mixed_batch(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    """Fixed lengths keep the batch's rows the same on both sides, whatever the others answer."""
    asked = prompts[:12]
    tiers = ["exact" if index % 3 == 0 else "flexible" for index in range(len(asked))]
    fixed = {"ignore_eos": True, "max_new_tokens": 48}
    assert settings(budget=FULL)
    whole = generate(lynx, asked, tiers, **fixed)
    for cut in ({"budget": 0, "demand": 0.4}, {"budget": 16, "demand": 1}):
        assert settings(**cut)
        lynx.post("/flush_cache", {})
        mixed = generate(lynx, asked, tiers, **fixed)
        for tier, ours, theirs in zip(tiers, mixed, whole, strict=True):
            assert ours.report["tier"] == tier
            assert ours.report["degraded"] == (tier == "flexible")
            if tier == "exact":
                assert ours.report["retained_mass"] == 1.0
                assert ours.tokens == theirs.tokens
                # Only the summation order may differ: other rows regroup each expert's rows.
                assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
