"""Cost of a prefill step, learned online: ms = fixed + token * tokens + pair * tokens * prefix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

FORGETTING: Final = 0.98  # per sample: some 50 steps count
RIDGE: Final = 1e-4  # of the mean square of each term: nothing is known of a term never varied
SWEEPS: Final = 30  # of coordinate descent, from the last solution
LEAST_SAMPLES: Final = 3
OUTLIER: Final = 4.0  # over the forecast: a first step compiles or captures
MOST_OUTLIERS: Final = 3  # in a row, after which they are believed
SCALES: Final = np.array([1.0, 1e2, 1e6])  # of the terms, so that all are of one size


@dataclass(slots=True)
class PrefillCost:
    """Least squares with forgetting and no term below 0: more tokens never cost less.

    The fixed term holds the reading of the experts, which even a short chunk needs.
    """

    terms: np.ndarray = field(default_factory=lambda: np.zeros(3))
    samples: int = 0
    _outliers: int = 0  # in a row
    _xx: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    _xy: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @property
    def is_known(self) -> bool:
        return self.samples >= LEAST_SAMPLES

    def learn(self, tokens: int, prefix: int, ms: float) -> None:
        """Take a prefill step.

        tokens: computed in it. prefix: of each of them, the tokens before it, on average.
        """
        if tokens < 1 or prefix < 0 or not 1e-3 <= ms < 1e7:  # NaN fails too
            return
        if self.is_known and ms > OUTLIER * self.ms(tokens, prefix):
            self._outliers += 1
            if self._outliers <= MOST_OUTLIERS:
                return
        self._outliers = 0
        row = np.array([1.0, tokens, tokens * prefix]) / SCALES
        weight = 1.0 / ms  # errors are relative
        self._xx = FORGETTING * self._xx + weight**2 * np.outer(row, row)
        self._xy = FORGETTING * self._xy + weight**2 * ms * row
        self.samples += 1
        self._solve()

    def ms(self, tokens: float, prefix: float) -> float:
        fixed, token, pair = self.terms / SCALES
        return float(fixed + tokens * (token + pair * prefix))

    def tokens_in(self, ms: float, prefix: float) -> float:
        """The most tokens whose step fits; 0 where none does, inf where they cost nothing."""
        fixed, token, pair = self.terms / SCALES
        if ms <= fixed:
            return 0.0
        per_token = token + pair * prefix
        return float((ms - fixed) / per_token) if per_token > 0.0 else float("inf")

    def state(self) -> dict[str, float]:
        """For telemetry, in ms; `pair_ms` per thousand tokens of prefix."""
        fixed, token, pair = (float(each) for each in self.terms / SCALES)
        return {"fixed_ms": fixed, "token_ms": token, "pair_ms": 1e3 * pair}

    def _solve(self) -> None:
        square = self._xx + np.diag(RIDGE * self._xx.diagonal() + 1e-12)
        for _ in range(SWEEPS):
            for i in range(3):
                rest = self._xy[i] - square[i] @ self.terms + square[i, i] * self.terms[i]
                self.terms[i] = max(0.0, rest / square[i, i])
