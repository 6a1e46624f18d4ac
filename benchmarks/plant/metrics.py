"""Metrics of a control run. All take plain sequences with one entry per decode step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def violation_rate(gaps_ms: Sequence[float], slo_ms: float) -> float:
    return float(np.mean(np.asarray(gaps_ms) > slo_ms))


def windowed_ms(gaps_ms: Sequence[float], percentile: float, window_steps: int) -> list[float]:
    """Entry i is the percentile of the window_steps gaps from step i on."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(gaps_ms), window_steps)
    return [float(each) for each in np.percentile(windows, percentile, axis=1)]


def settling_steps(
    gaps_ms: Sequence[float], slo_ms: float, percentile: float = 95.0, window_steps: int = 64
) -> int:
    """Steps until every later window meets the SLO; len(gaps_ms) if it never stays inside."""
    late = [i for i, ms in enumerate(windowed_ms(gaps_ms, percentile, window_steps)) if ms > slo_ms]
    if not late:
        return 0
    is_last = late[-1] == len(gaps_ms) - window_steps
    return len(gaps_ms) if is_last else late[-1] + 1


def overshoot(
    gaps_ms: Sequence[float], slo_ms: float, percentile: float = 95.0, window_steps: int = 64
) -> float:
    """Worst windowed percentile over the SLO, less one; negative: never missed."""
    return max(windowed_ms(gaps_ms, percentile, window_steps)) / slo_ms - 1.0


def reversals_per_1000(shares: Sequence[float], tolerance: float = 0.005) -> float:
    """Changes of direction; moves below the tolerance add up until they count."""
    reversals, direction, anchor = 0, 0, shares[0]
    for share in shares:
        if abs(share - anchor) > tolerance:
            heading = 1 if share > anchor else -1
            reversals += direction == -heading
            direction, anchor = heading, share
    return 1000.0 * reversals / len(shares)


def recovery_steps(shares: Sequence[float]) -> int:
    """Steps until the share is back at 1 for good; len(shares) if it never is."""
    below = [i for i, share in enumerate(shares) if share < 1.0]
    return below[-1] + 1 if below else 0
