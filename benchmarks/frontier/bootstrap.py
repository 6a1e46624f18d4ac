"""Bootstrap intervals of a frontier: every setting is judged on the same resampled problems."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
LEAST_KL = 1e-9  # nats; keeps logarithms finite
Row = dict[str, Any]
Floats = NDArray[np.float64]


def draws_of(problems: int, seed: int = 0) -> Floats:
    """Draws of each problem, counted: [DRAWS + 1, problems]; the first draw is the sample."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(problems, np.full(problems, 1 / problems), size=DRAWS)
    return np.concatenate([np.ones((1, problems)), np.asarray(drawn, dtype=np.float64)])


def mean_kl(row: Row, draws: Floats) -> Floats:
    """Mean KL per token in every draw [DRAWS + 1]."""
    sums, counts = np.array(row["kl_by_problem"]), np.array(row["tokens_by_problem"])
    result: Floats = draws @ sums / (draws @ counts)
    return result


def log_kl_at(curve: Sequence[Row], active: float, draws: Floats) -> Floats | None:
    """ln KL of a curve at T = `active` in every draw, linear in T between the neighbours.

    None where the curve does not reach: nothing is extrapolated.
    """
    ordered = sorted(curve, key=lambda row: float(row["T"]))
    for low, high in itertools.pairwise(ordered):
        if low["T"] <= active <= high["T"]:
            share = (active - low["T"]) / max(high["T"] - low["T"], 1e-9)
            logs = [np.log(np.maximum(mean_kl(row, draws), LEAST_KL)) for row in (low, high)]
            result: Floats = logs[0] * (1 - share) + logs[1] * share
            return result
    return None


def interval(draws: Floats) -> tuple[float, float, float]:
    """The sample's value and its 95 % percentile interval."""
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return float(draws[0]), float(low), float(high)


def paired_loss(full: set[int], other: set[int], count: int) -> tuple[float, float, float]:
    """Points of accuracy lost and a 95 % interval, from the problems that each got wrong.

    Adjusted Wald interval for matched pairs (Agresti and Min 2005): half an observation is added
    to each kind of pair, so that no interval has width zero.
    """
    lost, won = len(other - full), len(full - other)
    difference = (lost - won) / (count + 2)
    spread = math.sqrt(lost + won + 1 - (lost - won) ** 2 / (count + 2)) / (count + 2)
    return (
        100 * (lost - won) / count,
        100 * (difference - 1.96 * spread),
        100 * (difference + 1.96 * spread),
    )
