"""Servers that Lynx refuses at start, with the reason and what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lynx_sglang.admission import num_experts_of, refusal
from lynx_sglang.settings import Settings


def arguments(**changes: Any) -> SimpleNamespace:
    served = {
        "model_path": "m",
        "device": "cpu",
        "moe_a2a_backend": "none",
        "enable_eplb": False,
        "init_expert_location": "trivial",
        "quantization": None,
        "enable_lora": None,
        "lora_paths": None,
        "tp_size": 1,
        "pp_size": 1,
        "dp_size": 1,
        "ep_size": 1,
        "speculative_algorithm": None,
    }
    return SimpleNamespace(**{**served, **changes})


def test_a_plain_moe_server_is_served() -> None:
    assert refusal(Settings(), arguments(), 64) is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "cuda"}, "device cuda"),
        ({"moe_a2a_backend": "deepep"}, "--moe-a2a-backend must be none, got deepep"),
        ({"enable_eplb": True}, "--enable-eplb"),
        ({"quantization": "fp8"}, "--quantization fp8"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"tp_size": 2}, "--tp-size must be 1"),
        ({"speculative_algorithm": "EAGLE"}, "--speculative-algorithm EAGLE"),
    ],
)
def test_what_is_not_served_is_named(changes: dict[str, Any], text: str) -> None:
    reason = refusal(Settings(), arguments(**changes), 64)
    assert reason is not None
    assert text in reason


def test_a_dense_model_is_refused() -> None:
    assert "dense" in str(refusal(Settings(), arguments(), 0))


def test_a_budget_above_the_models_experts_is_refused() -> None:
    assert "at most this model's 64 experts, got 65" in str(
        refusal(Settings(budget=65), arguments(), 64)
    )


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ({"num_experts": 64}, 64),
        ({"n_routed_experts": 160}, 160),
        ({"num_local_experts": 8}, 8),
        ({"num_experts": None}, 0),
        ({}, 0),
    ],
)
def test_expert_counts_by_their_published_names(names: dict[str, Any], count: int) -> None:
    assert num_experts_of(SimpleNamespace(**names)) == count
