"""The control law: a pure function from a forecast to a share of the experts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lynx_controller.config import ControllerConfig
from lynx_controller.forecast import Forecast
from lynx_controller.types import Reason


@dataclass(frozen=True, slots=True)
class Situation:
    """What the law looks at, besides the configuration."""

    forecast: Forecast
    slo_ms: float
    tail: float  # the trim: measured percentile of (gap - own time), over own time
    held_tail: float  # the trim when the share last moved
    excess_ms: float  # part of the forecast's base that is a disturbance
    held: float  # share decided last
    min_share: float  # least share that the operator's quality floor allows
    guard: float = 0.0  # least share that the limit on quality allows


@dataclass(frozen=True, slots=True)
class Move:
    share: float
    reason: Reason
    saturated: bool
    target_ms: float


def decide(now: Situation, config: ControllerConfig) -> Move:
    """One step of the law.

    target = SLO * (1 - margin) / (1 + tail)      tail: the slow trim, fast up, slow down
    ms(u)  = base + slope * active(u)             the forecast, rising in the share u
    lowest = max(min_share, guard)                  the operator's, or what the quality limit allows

    SATURATED   ms(lowest) > target: the lowest share; there is no state that could wind up
    GUARD       the same at a share that the guard has raised
    OUTSIDE     ms(lowest) > SLO, but only because the base holds a disturbance: judged without it,
                since no cut would have brought the gap inside the SLO
    FULL        share 1, at once when ms(1) <= target * (1 - up_band), kept to * (1 + down_band)
    error       target - ms(held)
    dead band   -down_band * target <= error <= up_band * target: HOLD
    gain        wanted = the share with ms(wanted) = target: the model's inverse, one step
    smooth      down: at once; up: a share `rise` of the way
    clamp       [lowest, 1]
    A move is a FEEDBACK where the tail made the difference since the last one, else FEED_FORWARD.
    """
    forecast, held, lowest = now.forecast, now.held, max(now.min_share, now.guard)
    limit = now.slo_ms * (1.0 - config.margin)
    target = limit / max(1.0 + now.tail, 0.5)
    min_share_ms, reason = forecast.ms(lowest), None
    if min_share_ms > now.slo_ms and min_share_ms - now.excess_ms <= target:
        forecast = replace(forecast, base_ms=forecast.base_ms - now.excess_ms)
        min_share_ms, reason = min_share_ms - now.excess_ms, Reason.OUTSIDE
    full_ms = forecast.ms(1.0)
    slack = config.down_band if held >= 1.0 else -config.up_band
    if full_ms <= target * (1.0 + slack):
        return Move(1.0, reason or Reason.FULL, False, target)
    if full_ms - min_share_ms < 0.005 * now.slo_ms:  # a cut would cost quality and buy no time
        return Move(1.0, Reason.SATURATED, True, target)
    if min_share_ms > target:
        limited = Reason.GUARD if lowest > now.min_share else Reason.SATURATED
        return Move(lowest, limited, True, target)
    low, high = -config.down_band * target, config.up_band * target
    error = target - forecast.ms(held)
    if lowest <= held < 1.0 and low <= error <= high:
        return Move(held, reason or Reason.HOLD, False, target)
    wanted = forecast.share_for(target)
    gain = 1.0 if wanted < held else config.rise
    share = min(max(held + gain * (wanted - held), lowest), 1.0)
    without_feedback = limit / max(1.0 + now.held_tail, 0.5) - forecast.ms(held)
    trimmed = Reason.FEEDBACK if low <= without_feedback <= high else Reason.FEED_FORWARD
    return Move(share, reason or trimmed, False, target)
