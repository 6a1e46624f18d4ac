"""Settings that change while a server runs: numbers, words, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from lynx_sglang import settings
from lynx_sglang.errors import SettingError
from lynx_sglang.loop import changes
from lynx_sglang.settings import Settings


def changed(
    before: Settings | None = None,
    refusal: Callable[[Settings], str | None] = lambda asked: asked.excess(64),
    **entries: float,
) -> Settings:
    named = {f"lynx_{name}": value for name, value in entries.items()}
    return changes.changed(before or Settings(), named, refusal)


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("lynx_slo_itl_ms", 25, 25.0),
        ("lynx_slo_itl_ms", 0, None),
        ("lynx_slo_tpot_ms", 15, 15.0),
        ("lynx_slo_tpot_ms", 0, None),
        ("lynx_slo_ttft_ms", 500, 500.0),
        ("lynx_slo_ttft_ms", 0, None),
        ("lynx_budget", 0, "auto"),
        ("lynx_budget", -1, "full"),
        ("lynx_budget", 16, 16),
        ("lynx_demand", -1, "auto"),
        ("lynx_demand", 0.5, 0.5),
        ("lynx_floor", 2, 2),
        ("lynx_max_quality_loss", 0, None),
        ("lynx_max_quality_loss", 0.01, 0.01),
        ("lynx_shadow_share", -1, "auto"),
        ("lynx_shadow_share", 0, 0.0),
    ],
)
def test_updates_are_numbers(key: str, value: float, parsed: object) -> None:
    assert changes.parsed_entry(key, value) == (key.removeprefix("lynx_"), parsed)


@pytest.mark.parametrize(
    ("key", "value"), [("lynx_slo_itl_ms", -1), ("lynx_budget", 1.5), ("lynx_min_retained_mass", 2)]
)
def test_a_bad_update_names_key_range_and_value(key: str, value: float) -> None:
    with pytest.raises(SettingError, match=key) as caught:
        changes.parsed_entry(key, value)
    assert repr(value) in str(caught.value)


def test_updates_must_go_together() -> None:
    limited = changed(max_quality_loss=0.01)
    assert limited.shadowed_share == 0.02
    with pytest.raises(SettingError, match=r"lynx_shadow_share: got 0;.*--lynx-max-quality-loss"):
        changed(limited, shadow_share=0)
    with pytest.raises(SettingError, match=r"lynx_max_quality_loss: got 0\.01; twice"):
        changed(max_quality_loss=0.01, refusal=lambda _: "twice")


def sent(**entries: Any) -> dict[str, Any]:
    """The entries as they reach the scheduler."""
    body = json.dumps({"server_args": {f"lynx_{name}": each for name, each in entries.items()}})
    return dict(json.loads(changes.wire_body(body.encode()))["server_args"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("budget", each) for each in ("auto", "full", 1, 16, 64, "25%", "12.5%", "100%")],
        *[("demand", each) for each in ("auto", 0, 0.5, 1)],
        *[("slo_itl_ms", each) for each in ("none", 20, 0.25)],
        ("slo_tpot_ms", "none"),
        ("slo_ttft_ms", "none"),
        ("max_quality_loss", "none"),
        ("shadow_share", "auto"),
        ("floor", 2),
        *[("share", each) for each in ("auto", "50%", 0.3, 1)],
    ],
)
def test_words_arrive_as_numbers_that_mean_them(name: str, value: object) -> None:
    (arrived,) = sent(**{name: value}).values()
    assert isinstance(arrived, int | float)
    after = asdict(changed(**{name: arrived}))[name]
    wanted = settings.parse_value(name, value, name)
    assert after == wanted or (value, after) == ("100%", "full")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slo_itl_ms", True),
        ("slo_itl_ms", float("nan")),
        ("slo_itl_ms", float("inf")),
        ("slo_itl_ms", "soon"),
        ("slo_itl_ms", [20]),
        ("slo_itl_ms", {"ms": 20}),
        ("budget", 0.25),
        ("budget", 10**40),
        ("budget", "150%"),
        ("demand", False),
        ("floor", 2.5),
    ],
)
def test_a_change_is_refused_in_the_words_of_a_start(name: str, value: object) -> None:
    with pytest.raises(SettingError) as at_start:
        settings.parse_value(name, value, "SOURCE")
    with pytest.raises(SettingError) as at_run_time:
        sent(**{name: value})
    _, _, said = str(at_start.value).partition("SOURCE")
    assert str(at_run_time.value).endswith(said)
    assert str(at_run_time.value).startswith(f"lynx_{name}")


def test_a_budget_above_the_models_experts_is_refused() -> None:
    with pytest.raises(SettingError, match=r"lynx_budget: got 999; .*at most .* 64 experts"):
        changed(budget=999)


def test_entries_are_judged_together() -> None:
    limited = changed(max_quality_loss=0.01)
    after = changed(limited, shadow_share=0, max_quality_loss=0)
    assert (after.shadow_share, after.max_quality_loss) == (0.0, None)
    cut = changed(budget=8)
    assert changed(cut, share=0.5, budget=0).share == 0.5
    with pytest.raises(SettingError, match=r"lynx_share: got 0\.5; .*--lynx-share"):
        changed(cut, share=0.5)


def test_an_unknown_key_names_the_known_ones() -> None:
    for name in ("bugdet", "policy", "config"):
        with pytest.raises(SettingError, match=rf"lynx_{name}: .*lynx_budget"):
            sent(**{name: 1})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"server_args": 3}', b'{"server_args": {"page_size": 1}}']
)
def test_other_bodies_are_sglangs(body: bytes) -> None:
    kept = changes.wire_body(body)
    assert kept == body or json.loads(kept) == json.loads(body)
