"""Drift detection: which sites got slower or faster, and whether one, a replica, a layer or all.

    above = max(0, above + e - k),   below = max(0, below - e - k),   alarm where either > h

e is the standardised, clipped residual of log time that `Sites.update` returns; one outlier adds at
most 3 - k. At an alarm, sites beyond h / 2 vote: half of the fleet, of a replica or of a layer is
enough. The caller inflates the covariance of the sites named; the law is re-learned in a few steps.

k and h were chosen by simulation (`benchmarks/cellscope/experiment.py --tune`): of the pairs with
fewer than 0.25 false alarms per 10,000 steps of 64 sites, one of the fastest on a 20 % slowdown,
and the one of these with the smaller k, which sees 10 % too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MAJORITY: Final = 0.5
SIGNS: Final = np.array([[1.0], [-1.0]])


class Scope(Enum):
    """The reach of a drift."""

    LOCAL = "local"
    REPLICA = "replica"
    LAYER = "layer"
    FLEET = "fleet"


@dataclass(frozen=True, slots=True)
class Alarm:
    scope: Scope
    which: NDArray[np.bool_]  # [S] sites concerned
    is_slower: bool


class Drift:
    """Two-sided CUSUM per site; state is [2, S]: above and below."""

    def __init__(
        self,
        replica: ArrayLike,
        layer: ArrayLike,
        allowance: float = 1.25,
        threshold: float = 6.0,
    ) -> None:
        if not (allowance > 0.0 and threshold > 0.0):
            raise ValueError(
                f"allowance and threshold must be > 0, got {allowance!r}, {threshold!r}"
            )
        self.replica = np.asarray(replica)
        self.layer = np.asarray(layer)
        if self.replica.shape != self.layer.shape or self.replica.ndim != 1:
            raise ValueError("replica and layer must be label vectors of the same length")
        self.allowance = allowance
        self.threshold = threshold
        self.state = np.zeros((2, len(self.replica)))
        self._step = np.empty_like(self.state)

    def watch(self, score: Array) -> Alarm | None:
        """Take one standardised residual per site, [S]."""
        state, step = self.state, self._step
        np.multiply(score, SIGNS, out=step)
        step -= self.allowance
        state += step
        np.maximum(state, 0.0, out=state)
        if np.maximum.reduce(state, axis=None) <= self.threshold:
            return None
        return self._vote()

    def _vote(self) -> Alarm:
        level = self.state.max(axis=0)
        fired = level > self.threshold
        suspect = level > self.threshold / 2.0
        is_slower = bool(self.state[0, fired].sum() > self.state[1, fired].sum())
        scope, which = Scope.LOCAL, fired
        if len(np.unique(self.replica)) > 1 and suspect.mean() >= MAJORITY:
            scope, which = Scope.FLEET, np.ones_like(fired)
        else:
            for wider, labels in ((Scope.REPLICA, self.replica), (Scope.LAYER, self.layer)):
                reached = majority(labels, fired, suspect)
                if reached.any():
                    scope, which = wider, reached | fired
                    break
        self.state[:, which] = 0.0
        return Alarm(scope, which, is_slower)


def majority(
    labels: NDArray[np.generic], fired: NDArray[np.bool_], suspect: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Sites whose label has a site that fired and at least two suspects, half of all it has."""
    reached = np.zeros_like(fired)
    for label in np.unique(labels[fired]):
        members = labels == label
        if suspect[members].sum() >= 2 and suspect[members].mean() >= MAJORITY:
            reached |= members
    return reached
