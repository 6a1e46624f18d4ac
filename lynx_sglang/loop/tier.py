"""A request's quality class, and the report that goes back with its answer.

A client asks with ``custom_params: {"lynx": "exact"}`` and reads ``meta_info["lynx"]``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from lynx_sglang.errors import short

logger = logging.getLogger(__name__)

KEY = "lynx"


class Tier(Enum):
    """A request's tier: whether selection may change its experts."""

    FLEXIBLE = "flexible"
    EXACT = "exact"


EXAMPLE = '{"lynx": "exact"} or {"lynx": "flexible"}'


def asked_tier(custom_params: Any) -> Tier | None:
    """The tier that a request's ``custom_params`` name; None where they name none.

    Raises:
        ValueError: no tier can be read; the message names both tiers and what was sent.
    """
    if custom_params is None:
        return None
    if not isinstance(custom_params, dict):
        raise ValueError(
            f"custom_params: expected an object such as {EXAMPLE}, got {short(custom_params)}"
        )
    for key in custom_params:
        if key != KEY and isinstance(key, str) and key.strip().casefold().startswith(KEY):
            raise ValueError(f"custom_params: the tier is {EXAMPLE}, got the key {short(key)}")
    asked = custom_params.get(KEY)
    if asked is None:
        return None
    for tier in Tier:
        if isinstance(asked, str) and asked == tier.value:
            return tier
    raise ValueError(f"custom_params: the tier is {EXAMPLE}, got {short(asked)}")


def tier_of(request: Any, default: Tier) -> Tier:
    """The tier of a ``Req``, read once and noted on it.

    Beams share one request's answer and are served exact. The process that takes requests refuses
    an unreadable tier; where one comes through, it is served exact and warned about once.
    """
    tier: Tier | None = getattr(request, "lynx_tier", None)
    if tier is None:
        tier = request.lynx_tier = read_tier(request) or default
    return tier


def read_tier(request: Any) -> Tier | None:
    if getattr(request, "beam_group", None) is not None:
        return Tier.EXACT
    try:
        return asked_tier(request.sampling_params.custom_params)
    except ValueError:
        warn_once()
        return Tier.EXACT


@cache
def warn_once() -> None:
    """One line for all such requests: a client that errs, errs often."""
    logger.warning("lynx: a request named no tier (%s); such requests are served exact", EXAMPLE)


@dataclass(slots=True)
class Account:
    """One request's losses to selection, over its decoded tokens; kept on the ``Req``."""

    decode_tokens: int = 0
    degraded_tokens: int = 0
    retained_mass_sum: float = 0.0
    covered_mass_sum: float = 0.0

    def add(self, retained_mass: float, covered_mass: float) -> None:
        """Count one decoded token and its mean masses over layers, in [0, 1]."""
        self.decode_tokens += 1
        self.retained_mass_sum += retained_mass
        self.covered_mass_sum += covered_mass
        self.degraded_tokens += retained_mass < 1.0

    def merge(self, other: Account) -> None:
        """Count another account's tokens too."""
        self.decode_tokens += other.decode_tokens
        self.degraded_tokens += other.degraded_tokens
        self.retained_mass_sum += other.retained_mass_sum
        self.covered_mass_sum += other.covered_mass_sum

    def report(self, tier: Tier) -> dict[str, Any]:
        """JSON for ``meta_info``; a request without decoded tokens kept all its mass."""
        tokens = self.decode_tokens
        return {
            "tier": tier.value,
            "degraded": self.degraded_tokens > 0,
            "degraded_tokens": self.degraded_tokens,
            "decode_tokens": tokens,
            "retained_mass": round(self.retained_mass_sum / tokens, 6) if tokens else 1.0,
            "covered_mass": round(self.covered_mass_sum / tokens, 6) if tokens else 1.0,
        }


def account_of(request: Any) -> Account:
    """The request's account, opened on first use."""
    account: Account | None = getattr(request, "lynx_account", None)
    if account is None:
        account = request.lynx_account = Account()
    return account
