"""The amount of prefill between decode steps under an inter-token SLO: a pure function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

FILL: Final = 0.9  # of the SLO, what a gap with a fitting chunk in it is forecast to take
PARTS: Final = (0.5, 0.8)  # of the gaps that may be late: prefill's at least, and of both at most
MOST_STEPS: Final = 256  # decode steps between two prefills
PATIENCE: Final = 0.5  # share of a TTFT that may pass before prefill goes first


class Rule(Enum):
    """The rule that set the pace."""

    UNPACED = "unpaced"  # no SLO on the gaps, or no cost is known yet
    CREDIT = "credit"  # fewer gaps were late than may be: the engine's own pace
    FIT = "fit"  # chunks that fit beside a decode step
    WAIT = "wait"  # no chunk fits: decode steps until a late gap has been earned
    TTFT = "ttft"  # a request waited too long: the engine's own pace
    FAILED = "failed"  # the pacer raised an error: the engine's own pace


class Cost(Protocol):
    """Forecast of a prefill step; see `learn.prefill.PrefillCost`."""

    def tokens_in(self, ms: float, prefix: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """The engine's: tokens of the least and of the largest chunk, both in whole pages."""

    least: int
    most: int
    page: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.page <= self.least <= self.most:
            raise ValueError(
                "a chunk needs 1 <= page <= least <= most, "
                f"got {self.page}, {self.least}, {self.most}"
            )

    def fitted(self, tokens: float) -> int:
        """The largest chunk of at most `tokens`; 0 below the least."""
        whole = self.page * (int(min(tokens, self.most)) // self.page)
        return whole if whole >= self.least else 0


@dataclass(frozen=True, slots=True)
class Pace:
    chunk_tokens: int  # of the next prefill step, at most
    interval: int  # decode steps before it (WAIT) and after it; 0: the engine's own
    rule: Rule


def late_share(percentile: float, decode_late: float = 0.0) -> float:
    """Share of the gaps that prefill may make late; decode_late: late without any prefill."""
    allowed = 1.0 - percentile / 100.0
    return max(PARTS[0] * allowed, PARTS[1] * allowed - decode_late)


def decode_percentile(percentile: float) -> float:
    """Percentile that decoding alone has to keep, so that both together keep `percentile`."""
    return 100.0 - (1.0 - PARTS[0]) * (100.0 - percentile)


def pace(
    slo_ms: float,
    decode_ms: float,
    cost: Cost,
    prefix: float,
    credit_steps: float,
    bounds: Bounds,
    waited: float = 0.0,
) -> Pace:
    """The pace of the next prefill.

    TTFT    waited > PATIENCE of the TTFT: it goes before the gaps
    CREDIT  credit >= 0: late gaps are left to spend, and one gap holds any number of prefills
    FIT     the largest chunk with decode + prefill(chunk) <= FILL * SLO, after each decode step:
            never a late gap
    WAIT    where even the least does not fit: -credit decode steps, at most MOST_STEPS

    The credit rises by one with every decode step, and falls by 1 / late_share with a gap that
    prefill made late. So late gaps stay within their share, wherever MOST_STEPS steps earn one.

    decode_ms is a step at full quality with its noise. A cut of experts makes no room for prefill:
    else each would use up what the other gave, down to the quality floor.

    Bounds: least <= chunk_tokens <= most, in pages; 0 <= interval <= MOST_STEPS. The tokens that
    may run at once never fall as the SLO or the credit rises.

    Args:
        prefix: tokens before the next chunk's.
        credit_steps: decode steps' worth of late gaps; negative: steps until one is earned.
        waited: of the oldest request, its wait over the TTFT; 0 without a TTFT.
    """
    if waited > PATIENCE:
        return Pace(bounds.most, 0, Rule.TTFT)
    if credit_steps >= 0.0:
        return Pace(bounds.most, 0, Rule.CREDIT)
    if chunk := bounds.fitted(cost.tokens_in(FILL * slo_ms - decode_ms, prefix)):
        return Pace(chunk, 1, Rule.FIT)
    return Pace(bounds.most, math.ceil(min(-credit_steps, MOST_STEPS)), Rule.WAIT)
