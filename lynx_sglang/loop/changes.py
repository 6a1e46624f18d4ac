"""Changes of settings at run time: the ``lynx_*`` keys of ``/set_internal_state``.

SGLang takes numbers alone there, so the process that takes requests makes numbers of words
(``wire_body``), and the scheduler makes settings of numbers (``changed``). Both refuse what a
start refuses, in the same words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lynx_sglang import settings
from lynx_sglang.errors import SettingError
from lynx_sglang.settings import Settings

PREFIX = "lynx_"
ENTRIES = "server_args"  # of the body of /set_internal_state
# The numbers that stand for words, by setting.
WORDS: dict[str, dict[str, float]] = {
    "slo_itl_ms": {"none": 0},
    "slo_tpot_ms": {"none": 0},
    "slo_ttft_ms": {"none": 0},
    "budget": {"auto": 0, "full": -1},
    "demand": {"auto": -1},
    "max_quality_loss": {"none": 0},
    "shadow_share": {"auto": -1},
    "share": {"auto": 0},
}
UPDATABLE = (
    "slo_itl_ms",
    "slo_tpot_ms",
    "slo_ttft_ms",
    "budget",
    "demand",
    "share",
    "min_retained_mass",
    "floor",
    "max_quality_loss",
    "shadow_share",
)


def changed(
    before: Settings, entries: Mapping[str, float], refusal: Callable[[Settings], str | None]
) -> Settings:
    """Settings after a request's entries, all or none.

    Args:
        entries: Lynx's own, by key; a budget between 0 and 1 is a share of all experts.
        refusal: why this server cannot honour settings; None where it can.

    Raises:
        SettingError: names the key and what is wrong with its value, alone or beside the others.
    """
    values = {}
    for key, number in entries.items():
        is_share = key == PREFIX + "budget" and 0.0 < number < 1.0
        name, value = parsed_entry(key, share_of_experts(number) if is_share else number)
        values[name] = value
    after = replace(before, **values)
    if reason := after.conflict() or refusal(after):
        raise SettingError(
            f"{', '.join(f'{key}: got {n:g}' for key, n in entries.items())}; {reason}"
        )
    return after


def parsed_entry(key: str, value: object) -> tuple[str, Any]:
    """Setting name and value of one entry, a word or a number.

    Raises:
        SettingError: names the key, its range and what it got.
    """
    name = key.removeprefix(PREFIX)
    if name not in UPDATABLE:
        known = ", ".join(PREFIX + each for each in UPDATABLE)
        raise SettingError(f"{key}: cannot change at run time; these can: {known}")
    words = WORDS.get(name, {})
    spelled = ", ".join(f"{number:g} for {word}" for word, number in words.items())
    source = f"{key} ({spelled})" if spelled else key
    asked = value
    if isinstance(value, int | float) and not isinstance(value, bool):
        asked = next((word for word, number in words.items() if number == value), value)
    return name, settings.parse_value(name, asked, source)


def share_of_experts(part: float) -> str:
    return f"{100 * part:g}%"


def wire_number(name: str, value: Any) -> float:
    """A setting's value as the number that stands for it."""
    word = "none" if value is None else value
    if word in WORDS.get(name, {}):
        return WORDS[name][word]
    if isinstance(value, str) and value.endswith("%"):  # below 1: a share of all experts
        part = float(value.removesuffix("%")) / 100
        return part if part < 1.0 else WORDS[name]["full"]
    return float(value)


def wire_body(body: bytes) -> bytes:
    """The body of a ``/set_internal_state`` request with Lynx's entries as numbers.

    What is no JSON object of entries is SGLang's to refuse.

    Raises:
        SettingError: an entry is wrong; names it, its range and what it got.
    """
    try:
        sent = json.loads(body)
        entries = {**sent[ENTRIES]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return body
    for key, value in entries.items():
        if key.startswith(PREFIX):
            entries[key] = wire_number(*parsed_entry(key, value))
    return json.dumps({**sent, ENTRIES: entries}).encode()
