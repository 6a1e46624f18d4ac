"""The control law: a pure function from a forecast to a share of the experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from lynx_controller.config import ControllerConfig
from lynx_controller.forecast import Forecast
from lynx_controller.types import Reason

WORTHWHILE: Final = 0.005  # of the SLO: a cut that buys less time is not made


@dataclass(frozen=True, slots=True)
class Situation:
    """Inputs of the law, besides the configuration."""

    forecast: Forecast
    slo_ms: float
    tail: float  # (measured gap statistic - own time) / own time
    held_tail: float  # the tail when the share last moved
    excess_ms: float  # part of the forecast's base that is a disturbance
    held: float  # share of the previous decision
    min_share: float  # least share that keeps the operator's retained mass
    guard: float = 0.0  # least share that the quality limit allows


@dataclass(frozen=True, slots=True)
class Move:
    share: float
    reason: Reason
    saturated: bool
    target_ms: float


def decide(now: Situation, config: ControllerConfig) -> Move:
    """One step of the law.

    target = SLO * (1 - margin) / (1 + tail)      tail: the feedback loop, fast up, slow down
    ms(u)  = base + slope * active(u)             the forecast, rising in the share u
    lowest = max(min_share, guard)                the operator's, or the quality limit's

    SATURATED   ms(lowest) > target: the lowest share; no state can wind up
    GUARD       the same where the guard sets the lowest share
    OUTSIDE     ms(lowest) > SLO only because the base holds a disturbance: judged without it,
                since no cut would have brought the gap inside the SLO
    FULL        share 1, at once when ms(1) <= target * (1 - up_band), kept to * (1 + down_band)
    error       target - ms(held)
    dead band   -down_band * target <= error <= up_band * target: HOLD
    gain        wanted = the share with ms(wanted) = target: the model's inverse, one step
    smooth      down: at once; up: a share `rise` of the way
    clamp       [lowest, 1]
    A move is FEEDBACK where the tail made the difference since the last one, else FEED_FORWARD.
    """
    forecast, held, lowest = now.forecast, now.held, max(now.min_share, now.guard)
    limit = now.slo_ms * (1.0 - config.margin)
    target = limit / max(1.0 + now.tail, 0.5)
    lowest_ms, reason = forecast.ms(lowest), None
    if lowest_ms > now.slo_ms and lowest_ms - now.excess_ms <= target:
        forecast = replace(forecast, base_ms=forecast.base_ms - now.excess_ms)
        lowest_ms, reason = lowest_ms - now.excess_ms, Reason.OUTSIDE
    full_ms = forecast.ms(1.0)
    slack = config.down_band if held >= 1.0 else -config.up_band
    if full_ms <= target * (1.0 + slack):
        return Move(1.0, reason or Reason.FULL, False, target)
    if full_ms - lowest_ms < WORTHWHILE * now.slo_ms:
        return Move(1.0, Reason.SATURATED, True, target)
    if lowest_ms > target:
        limited = Reason.GUARD if lowest > now.min_share else Reason.SATURATED
        return Move(lowest, limited, True, target)
    low, high = -config.down_band * target, config.up_band * target
    error = target - forecast.ms(held)
    if lowest <= held < 1.0 and low <= error <= high:
        return Move(held, reason or Reason.HOLD, False, target)
    wanted = forecast.share_for(target)
    gain = 1.0 if wanted < held else config.rise
    share = min(max(held + gain * (wanted - held), lowest), 1.0)
    error_at_held_tail = limit / max(1.0 + now.held_tail, 0.5) - forecast.ms(held)
    cause = Reason.FEEDBACK if low <= error_at_held_tail <= high else Reason.FEED_FORWARD
    return Move(share, reason or cause, False, target)
