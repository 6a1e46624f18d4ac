"""The control law: a pure function from a forecast to a demand."""

from __future__ import annotations

from dataclasses import dataclass

from .config import ControllerConfig
from .forecast import Forecast
from .types import Reason


@dataclass(frozen=True, slots=True)
class Situation:
    """What the law looks at, besides the configuration."""

    forecast: Forecast
    slo_ms: float
    tail_ms: float  # the trim: measured percentile of (gap - own step time)
    held_tail_ms: float  # the trim when the demand last moved
    excess_ms: float  # part of the forecast's base that is a disturbance
    held: float  # demand decided last


@dataclass(frozen=True, slots=True)
class Move:
    demand: float
    reason: Reason
    saturated: bool
    target_ms: float


def decide(now: Situation, config: ControllerConfig) -> Move:
    """One step of the law.

    target = SLO * (1 - margin) - tail            tail: slow trim, fast up, slow down
    ms(d)  = base + slope * active(d)             the forecast, rising in d

    SATURATED   ms(floor) > target: the floor, and no state that could wind up
    GUARD       the same, but only because of a disturbance outside the experts: the target is
                raised by the disturbance, since no cut would have brought the gap inside the SLO
    error       target - ms(held)
    dead band   -down_band * target <= error <= up_band * target: HOLD
    gain        wanted = the demand with ms(wanted) = target: one step, from the model's inverse
    smooth      down: at once; up: a share `rise` of the way
    FULL        demand 1 at once when ms(1) <= target * (1 - up_band), kept to (1 + down_band)
    clamp       [min_demand, 1]
    A move is a TRIM where the tail made the difference since the last one, else FEED_FORWARD.
    """
    forecast, held, floor = now.forecast, now.held, config.min_demand
    target = now.slo_ms * (1.0 - config.margin) - now.tail_ms
    full_ms, floor_ms = forecast.ms(1.0), forecast.ms(floor)
    reason = None
    if floor_ms > target and floor_ms - now.excess_ms <= target:
        target += now.excess_ms
        reason = Reason.GUARD
    slack = config.down_band if held >= 1.0 else -config.up_band
    if full_ms <= target * (1.0 + slack):
        return Move(1.0, reason or Reason.FULL, False, target)
    if full_ms - floor_ms < 0.005 * now.slo_ms:  # cutting would cost quality and buy no time
        return Move(1.0, Reason.SATURATED, True, target)
    if floor_ms > target:
        return Move(floor, Reason.SATURATED, True, target)
    error = target - forecast.ms(max(held, floor))
    if -config.down_band * target <= error <= config.up_band * target and floor <= held < 1.0:
        return Move(held, reason or Reason.HOLD, False, target)
    wanted = forecast.demand_for(target)
    share = 1.0 if wanted < held else config.rise
    demand = min(max(held + share * (wanted - held), floor), 1.0)
    before = error + now.tail_ms - now.held_tail_ms
    is_trim = -config.down_band * target <= before <= config.up_band * target
    reason = reason or (Reason.TRIM if is_trim else Reason.FEED_FORWARD)
    return Move(demand, reason, False, target)
