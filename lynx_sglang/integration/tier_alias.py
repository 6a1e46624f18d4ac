"""A second way to name a tier, which every client and proxy can send: the model's name.

``"model": "NAME:exact"`` reaches SGLang as an adapter's name, as does ``"lora_path": "exact"`` of
``/generate``. Routers that drop ``custom_params`` keep both. An adapter that is loaded under a
tier's name is an adapter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from lynx_sglang.errors import short
from lynx_sglang.integration import flags
from lynx_sglang.loop.tier import KEY, Tier, asked_tier

TIERS = " and ".join(tier.value for tier in Tier)


async def resolve(original: Callable[..., Awaitable[None]], manager: Any, request: Any) -> None:
    """Around ``_validate_and_resolve_lora``, before SGLang looks adapters up.

    Raises:
        ValueError: a name that is neither an adapter nor a tier, or two tiers; SGLang answers it
            with status 400.
    """
    if (
        flags.published() is None
        or not request.lora_path
        or not hasattr(request, "sampling_params")
    ):
        await original(manager, request)
        return
    if isinstance(request.lora_path, str):
        request.lora_path, request.sampling_params = taken(
            manager, request.lora_path, request.sampling_params
        )
    else:
        # SGLang has made a request of each entry, and keeps it: these are what it sends.
        parts = [request[place] for place in range(len(request.lora_path))]
        for part in parts:
            part.lora_path, part.sampling_params = taken(
                manager, part.lora_path, part.sampling_params
            )
        names = [part.lora_path for part in parts]
        request.lora_path = names if any(names) else None
    try:
        await original(manager, request)
    except ValueError as error:
        raise ValueError(f"{error} Lynx's tiers are {TIERS}.") from None


def taken(
    manager: Any, name: str | None, sampling: dict[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """An adapter's name and sampling values, with a tier moved from the first to the second."""
    if name not in {tier.value for tier in Tier}:
        return name, sampling
    if manager.enable_lora and name in manager.lora_ref_cache:
        return name, sampling
    custom = sampling.get("custom_params")
    asked = asked_tier(custom)
    if asked is not None and asked.value != name:
        raise ValueError(
            f"the model's name asks for the tier {name}, custom_params for {short(asked.value)}"
        )
    return None, {**sampling, "custom_params": {**(custom or {}), KEY: name}}
