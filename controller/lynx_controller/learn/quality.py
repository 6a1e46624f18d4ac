"""Quality model: the loss of a cut, and the least share within the operator's limits.

    lost    1 - retained mass, mean over layers = spill(size class) * (1 - share)^2, from each cut
    kl      KL(full model || served), nats per token, of one shadowed step's flexible rows
    gain    E[kl] = gain * lost^2: the first term of KL in a small change of the logits

A cap takes the least important experts first, so the lost mass grows with the square of the share
that it takes: spill was 0.93 to 1.25 on three models, at caps of 0.36 to 0.53 of the uncapped
number (benchmarks/results/cpu/frontier, policy lynx, floor 0 and 1).

The gain is a ratio of sums over rows, unbiased however few tokens carry the mean (Cochran,
Sampling Techniques, ch. 6), shrunk to a prior of PRIOR_ROWS rows. Its upper bound is normal, from
second moments about zero: where KL is rare, rows that show none say little against it, so the
prior's PRIOR_RARITY stays in the error until samples outweigh it. One sample adds at most the
upper bound to the gain: a truncated mean whose threshold grows with the sample (Bubeck et al.,
IEEE Trans. Inf. Theory 59, 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Final

from lynx_controller.types import Batch, Key, Observation

PRIOR_ROWS: Final = 30.0  # weight of the prior gain
PRIOR_RARITY: Final = 1000.0  # of the rows that are not seen yet, one in so many carries all KL
MEMORY_ROWS: Final = 5_000.0
MOST_KL: Final = 50.0  # nats; a larger value is a faulty sample
UPPER: Final = 1.64  # standard errors: one-sided 95 %
UNSEEN: Final = 1e-5  # share of the samples forgotten per cut step without one
PRIOR_SPILL: Final = 1.06
SPILLS: Final = (0.5, 2.0)
SPILL_GAIN: Final = 0.02  # per cut step
SMALLEST_CUT: Final = 0.1  # smaller cuts say nothing about larger ones


def mean_mass(masses: Sequence[float]) -> float | None:
    """Mean over layers; None where there is none, or one lies outside [0, 1]."""
    if len(masses) == 0:
        return None
    mass = sum(masses) / len(masses)  # NaN where one is
    return mass if mass == mass and min(masses) >= 0.0 and max(masses) <= 1.0 else None


@dataclass(slots=True)
class Quality:
    """Learns from capped steps; all others leave it as it is."""

    prior_kl: float  # nats with all mass lost
    rows: float = 0.0  # shadowed, with forgetting
    loss: float = 0.0  # their sums over rows: loss = lost^2, loss^2, kl
    loss_squared: float = 0.0
    kl: float = 0.0
    kl_squared: float = 0.0
    agreement: float | None = None  # share of rows whose top token is the full model's
    spills: dict[Key, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Nats with all mass lost, as expected."""
        if not self.loss:
            return self.prior_kl
        rows = self._informative_rows()
        measured = rows * self.kl / self.loss
        return (measured + PRIOR_ROWS * self.prior_kl) / (rows + PRIOR_ROWS)

    @property
    def upper(self) -> float:
        """The same, with 95 % confidence."""
        rows = self._informative_rows()
        measured = rows**2 * self.kl_squared / self.loss**2 if self.loss else 0.0
        prior = PRIOR_ROWS * PRIOR_RARITY * self.prior_kl**2
        return self.gain + UPPER * math.sqrt(measured + prior) / (rows + PRIOR_ROWS)

    def state(self) -> dict[str, float | None]:
        """For telemetry."""
        return {
            "kl_gain": self.gain,
            "kl_gain_upper": self.upper,
            "shadow_rows": self.rows,
            "shadow_agreement": self.agreement,
        }

    def lost_at(self, key: Key, share: float) -> float:
        """Expected lost mass, mean over rows and layers."""
        return self._spill(key) * (1.0 - share) ** 2

    def share_keeping(self, key: Key, mass: float) -> float:
        """The least share with 1 - lost_at >= mass."""
        return max(0.0, 1.0 - math.sqrt((1.0 - mass) / self._spill(key)))

    def kl_at(self, key: Key, share: float) -> float:
        """Expected KL in nats at a share, with 95 % confidence."""
        loss = self.lost_at(key, share) ** 2
        typical = self._typical()
        return self.upper * loss * (max(1.0, loss / typical) if typical else 1.0)

    def share_for(self, key: Key, limit_kl: float) -> float:
        """The least share with kl_at <= limit.

        Beyond the loss that was sampled, KL is taken to grow with its square: a gain learned from
        light cuts does not excuse a deep one.
        """
        loss, typical = limit_kl / self.upper, self._typical()
        if typical and loss > typical:
            loss = math.sqrt(loss * typical)
        return self.share_keeping(key, 1.0 - math.sqrt(loss))

    def observe(self, seen: Observation, batch: Batch, share: float | None) -> None:
        """Take a step as the engine saw it; see `learn`."""
        self.learn(
            batch.key,
            batch.flexible_rows,
            share,
            seen.retained_mass,
            seen.shadow_kl,
            seen.shadow_agreement,
        )

    def learn(
        self,
        key: Key,
        rows: int,
        share: float | None,
        masses: Sequence[float],
        kl: float | None,
        agreement: float | None,
    ) -> None:
        """Take a step that read `share` of its uncapped experts; masses are [L], rows the flexible.

        share None: not caps alone cut it, or not all rows are flexible.
        Impossible values are no samples: masses and agreement outside [0, 1], KL outside [0, 50].
        """
        mass = mean_mass(masses)
        if rows < 1 or mass is None:
            return
        lost = 1.0 - mass
        loss = lost**2
        if not loss:
            return
        if share is not None and 1.0 - share >= SMALLEST_CUT:
            spill = self._spill(key)
            spill += SPILL_GAIN * (lost / (1.0 - share) ** 2 - spill)
            self.spills[key] = min(max(spill, SPILLS[0]), SPILLS[1])
        if not isinstance(kl, Real) or not 0.0 <= kl <= MOST_KL:
            self._scale(1.0 - UNSEEN)
            return
        weight = min(1.0, loss * self.rows / self.loss) if self.loss else 1.0
        surplus = max(0.0, self.rows + rows - MEMORY_ROWS)
        if surplus:  # forget what the sample replaces
            self._scale(1.0 - weight * surplus / self.rows)
        kl_sum = min(rows * float(kl), (self.rows + PRIOR_ROWS) * self.upper * loss)
        self.rows += rows
        self.loss += rows * loss
        self.loss_squared += rows * loss**2
        self.kl += kl_sum
        self.kl_squared += kl_sum**2
        if isinstance(agreement, Real) and 0.0 <= agreement <= 1.0:
            before = 1.0 if self.agreement is None else self.agreement
            self.agreement = before + rows / self.rows * (float(agreement) - before)

    def _scale(self, keep: float) -> None:
        self.rows *= keep
        self.loss *= keep
        self.loss_squared *= keep
        self.kl *= keep
        self.kl_squared *= keep

    def _informative_rows(self) -> float:
        """Effective sample size: rows that would inform as much if all had lost alike."""
        return self.loss**2 / self.loss_squared if self.loss else 0.0

    def _typical(self) -> float:
        """Loss of the sampled steps, the lossy ones weighing more; 0 before the first."""
        return self.loss_squared / self.loss if self.loss else 0.0

    def _spill(self, key: Key) -> float:
        """A new size class's is its nearest neighbour's."""
        if key not in self.spills:
            near = min(self.spills, key=lambda each: abs(math.log(each[1] / key[1])), default=None)
            self.spills[key] = PRIOR_SPILL if near is None else self.spills[near]
        return self.spills[key]
