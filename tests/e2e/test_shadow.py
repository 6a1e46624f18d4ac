"""The shadow pass on a running server: what it measures, and that it changes no answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loadtests.server import Server

pytestmark = pytest.mark.e2e

Generate = Callable[..., list[Any]]
Settings = Callable[..., bool]
FULL = -1
FIXED = {"ignore_eos": True, "max_new_tokens": 48}


def shadow(server: Server) -> dict[str, Any]:
    part = server.lynx()
    assert part is not None
    found: dict[str, Any] = part["shadow"]
    return found


def test_a_shadow_changes_no_bit_of_the_answers(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    tiers = ["exact" if index % 4 == 0 else "flexible" for index in range(12)]
    answers = []
    for share in (0, 1):
        assert settings(demand=0.4, shadow_share=share)
        lynx.post("/flush_cache", {})
        answers.append(generate(lynx, prompts[:12], tiers, **FIXED))
    without, beside = answers
    assert [answer.tokens for answer in beside] == [answer.tokens for answer in without]
    assert [answer.logprobs for answer in beside] == [answer.logprobs for answer in without]
    assert [answer.report for answer in beside] == [answer.report for answer in without]


def test_every_cut_step_is_compared_at_share_one(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    tiers = ["exact", *["flexible"] * 7]
    losses = []
    for demand in (0.9, 0.3):
        assert settings(demand=demand, shadow_share=1)
        before = shadow(lynx)
        generate(lynx, prompts[:8], tiers, **FIXED)
        after = shadow(lynx)
        steps, rows = (after[name] - before[name] for name in ("steps", "rows"))
        assert steps == FIXED["max_new_tokens"] - 1  # the prefill gives the first token
        assert rows == 7 * steps
        losses.append((after["kl_sum"] - before["kl_sum"]) / rows)
        histogram = zip(after["kl_histogram"], before["kl_histogram"], strict=True)
        assert sum(new - old for new, old in histogram) == rows
    assert 0.0 < losses[0] < losses[1]


def test_the_kl_is_what_two_servers_would_measure(
    model: Path, lynx: Server, settings: Settings, prompts: list[str]
) -> None:
    """Prefill is never cut, so both second tokens are computed from the same context."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    body = {
        "text": prompts[:8],
        "sampling_params": {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": vocabulary,
    }

    def second_tokens() -> list[dict[int, float]]:
        lynx.post("/flush_cache", {})
        answers = lynx.post("/generate", body)
        tops = [answer["meta_info"]["output_top_logprobs"][1] for answer in answers]
        return [{token: logprob for logprob, token, *_ in top} for top in tops]

    assert settings(budget=FULL)
    full = second_tokens()
    assert settings(budget=0, demand=0.3, shadow_share=1)
    before = shadow(lynx)
    served = second_tokens()
    after = shadow(lynx)
    losses = [
        sum(math.exp(p) * (p - q[token]) for token, p in each.items())
        for each, q in zip(full, served, strict=True)
    ]
    assert after["rows"] - before["rows"] == 8
    assert after["kl_sum"] - before["kl_sum"] == pytest.approx(sum(losses), rel=1e-3)
    agreed = sum(
        max(p, key=p.__getitem__) == max(q, key=q.__getitem__)
        for p, q in zip(full, served, strict=True)
    )
    assert after["agreements"] - before["agreements"] == agreed


def test_a_tight_quality_limit_binds_the_controller_and_a_loose_one_does_not(
    lynx: Server, settings: Settings, prompts: list[str], generate: Generate
) -> None:
    """An SLO that nothing can meet asks for the deepest cut; the guard alone says how deep."""
    reached, bound = [], []
    for limit in (0, 10, 1e-4):
        assert settings(
            slo_itl_ms=0.01, min_retained_mass=0.3, shadow_share=1, max_quality_loss=limit
        )
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(generate, lynx, prompts[:12], ignore_eos=True, max_new_tokens=60)
            is_bound = False
            while not load.done():
                is_bound = is_bound or guard_binds(lynx)
            load.result()
        bound.append(is_bound)
        part = lynx.lynx()
        assert part is not None
        reached.append((part["decision"]["reason"], part["decision"]["share"]))
    without, loose, tight = reached
    assert without[0] == loose[0] == "saturated"
    assert without[1] == pytest.approx(loose[1], abs=0.05)
    assert tight[0] == "guard"
    assert tight[1] > loose[1] + 0.2
    assert bound == [False, False, True]


def guard_binds(lynx: Server) -> bool:
    """The gauge of the moment: an idle server shows 0."""
    lines = lynx.get("/metrics").splitlines()
    (binds,) = [line for line in lines if line.startswith("sglang:lynx_guard_binds{")]
    return float(binds.split()[-1]) == 1.0


def test_a_limit_that_nothing_would_measure_is_not_taken(lynx: Server, settings: Settings) -> None:
    assert settings(max_quality_loss=0.01)
    assert not settings(shadow_share=0)
