"""A request's quality class, and the report that goes back with its answer.

A client asks with ``custom_params: {"lynx": "exact"}`` and reads ``meta_info["lynx"]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

KEY = "lynx"


class Tier(Enum):
    """What selection may do with a request's tokens."""

    FLEXIBLE = "flexible"
    EXACT = "exact"


def tier_of(request: Any, default: Tier) -> Tier:
    """The tier that a ``Req`` asked for.

    An unknown tier is served exact: a typing error must not cost a request its quality. The
    request's report says which tier it had.
    """
    asked = (request.sampling_params.custom_params or {}).get(KEY)
    if asked is None:
        return default
    return Tier.FLEXIBLE if asked == Tier.FLEXIBLE.value else Tier.EXACT


@dataclass(slots=True)
class Account:
    """What selection took from one request, over its decoded tokens; lives on the ``Req``."""

    decode_tokens: int = 0
    degraded_tokens: int = 0
    retained_mass_sum: float = 0.0

    def add(self, retained_mass: float) -> None:
        """Count one decoded token and its mean retained mass over layers, in [0, 1]."""
        self.decode_tokens += 1
        self.retained_mass_sum += retained_mass
        self.degraded_tokens += retained_mass < 1.0

    def report(self, tier: Tier) -> dict[str, Any]:
        """JSON for ``meta_info``; a request without decoded tokens kept all its mass."""
        tokens = self.decode_tokens
        return {
            "tier": tier.value,
            "degraded": self.degraded_tokens > 0,
            "degraded_tokens": self.degraded_tokens,
            "decode_tokens": tokens,
            "retained_mass": round(self.retained_mass_sum / tokens, 6) if tokens else 1.0,
        }


def account_of(request: Any) -> Account:
    """The request's account, opened on first use."""
    account: Account | None = getattr(request, "lynx_account", None)
    if account is None:
        account = request.lynx_account = Account()
    return account
