"""Sites: one linear law of step time per MoE layer of a replica, learned from a prior, online.

    offline  w_s = (X'X / R + Lambda_g^-1)^-1 (X'1 / R + Lambda_g^-1 w_g),   x = z / us
    online   x = z / z'w,  s^2 = R + x'Px,  e = clip((us / z'w - 1) / s, +-3)
             w += Px e / s,  P -= Px x'P / s^2;  every 8th step P /= f^8, its trace capped

Regression is on the relative error, so the noise R is a share of the step, whatever its length.
Arrays have the sites last: [d, S] and [d, d, S], so that a step updates all layers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CLIP: Final = 3.0  # standard deviations that one innovation can move a model
FORGET_EVERY: Final = 8  # steps; forgetting each step costs more than the update itself


@dataclass(slots=True)
class Statistics:
    """Sums over a site's samples for a fit, in two halves so that it can hold one out."""

    count: Array  # [2, S]
    gram: Array  # [2, d, d, S] sum of x x'
    moment: Array  # [2, d, S] sum of x; the target is 1

    @classmethod
    def empty(cls, num_features: int, num_sites: int) -> Statistics:
        d, s = num_features, num_sites
        return cls(np.zeros((2, s)), np.zeros((2, d, d, s)), np.zeros((2, d, s)))

    @classmethod
    def of_rows(cls, z: Array, us: Array) -> Statistics:
        """From z [S, n, d] and us [S, n]: samples go to the halves in turn."""
        statistics = cls.empty(z.shape[-1], len(z))
        statistics.add(z.transpose(1, 2, 0), us.T)
        return statistics

    def add(self, z: Array, us: Array) -> None:
        """A few samples of every site: z [n, d, S], us [n, S]. A time that is not > 0: unseen."""
        is_seen = (us > 0.0) & np.isfinite(us)
        x = np.where(is_seen, 1.0, 0.0)[:, None] * z / np.where(is_seen, us, 1.0)[:, None]
        for half in (0, 1):
            part = x[half::2]
            self.count[half] += is_seen[half::2].sum(axis=0)
            self.gram[half] += np.einsum("nis,njs->ijs", part, part)
            self.moment[half] += part.sum(axis=0)

    def merged(self, later: Statistics, keep: float = 1.0) -> Statistics:
        """These, decayed by `keep`, and later ones of the same sites."""
        return Statistics(
            keep * self.count + later.count,
            keep * self.gram + later.gram,
            keep * self.moment + later.moment,
        )

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in ("count", "gram", "moment")}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Statistics:
        return cls(*(np.array(record[name]) for name in ("count", "gram", "moment")))


def posterior(
    gram: Array, moment: Array, noise: float, mean: Array, covariance: Array
) -> tuple[Array, Array]:
    """Few samples shrunk to a prior; sites FIRST here: [S, d, d], [S, d] -> mean, covariance."""
    precision = np.linalg.inv(covariance)
    shrunk = np.linalg.inv(gram / noise + precision)
    pull = moment / noise + (precision @ mean[..., None])[..., 0]
    return (shrunk @ pull[..., None])[..., 0], shrunk


@dataclass(slots=True)
class Sites:
    """Laws of S sites, as they are known now. `update` is the step path."""

    mean: Array  # [d, S] w
    covariance: Array  # [d, d, S] P
    noise: float  # R: relative variance of a sample
    forgetting: float = 0.995  # f
    steps: int = 0
    prior: Array = field(init=False)  # [d, d, S] the covariance that an alarm goes back to
    scale: Array = field(init=False)  # [d * d, S] weights of the trace, which is 1 at the prior
    _buffers: tuple[Array, Array, Array, Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        d, num_sites = self.mean.shape
        self.mean = np.array(self.mean, order="C")  # own copies: updated in place
        self.covariance = np.array(self.covariance, order="C")
        shapes = (d, num_sites), (d, num_sites), (d, d, num_sites), num_sites, num_sites
        x, px, outer, score, spread = (np.empty(shape) for shape in shapes)
        self._buffers = x, px, outer, score, spread
        self.open(self.covariance)

    def open(self, covariance: Array) -> None:
        """Set what counts as knowing nothing of a site but its group."""
        d, num_sites = self.mean.shape
        self.prior = covariance.copy()
        variance = np.maximum(np.einsum("iis->is", covariance), 1e-30)
        self.scale = (np.eye(d)[:, :, None] / (d * variance)).reshape(d * d, num_sites)

    def predict(self, z: Array) -> tuple[Array, Array]:
        """Time in us and its relative standard deviation, a sample's noise included; z [d, S]."""
        us = (z * self.mean).sum(axis=0)
        x = z / us
        spread = (x * (self.covariance * x).sum(axis=1)).sum(axis=0)
        return us, np.sqrt(self.noise + spread)

    def update(self, z: Array, us: Array) -> Array:
        """Take one sample per site; standardised residuals [S], clipped. Not a time > 0: unseen.

        The array returned is overwritten by the next update.
        """
        x, px, outer, score, spread = self._buffers
        covariance = self.covariance
        np.multiply(z, self.mean, out=x)
        expected = np.add.reduce(x)
        np.divide(z, expected, out=x)
        np.multiply(covariance, x, out=outer)
        np.add.reduce(outer, axis=1, out=px)
        np.multiply(x, px, out=x)
        np.add.reduce(x, out=spread)
        spread += self.noise
        np.sqrt(spread, out=spread)
        np.divide(us, expected, out=score)
        lowest = np.minimum.reduce(score)
        score -= 1.0
        score /= spread
        np.maximum(score, -CLIP, out=score)
        if not (lowest > 0.0 and np.maximum.reduce(score) < CLIP):  # or NaN
            is_seen = (us > 0.0) & np.isfinite(us) & np.isfinite(score)
            score[:] = np.where(is_seen, score, 0.0).clip(-CLIP, CLIP)
            px[:, ~is_seen] = 0.0
            spread[~is_seen] = 1.0
        px /= spread
        np.multiply(px[:, None], px, out=outer)
        covariance -= outer
        px *= score
        self.mean += px
        self.steps += 1
        if self.steps % FORGET_EVERY == 0:
            self._forget()
        return score

    def _forget(self) -> None:
        """As much as FORGET_EVERY steps do, but never beyond the prior's trace."""
        trace = (self.covariance.reshape(self.scale.shape) * self.scale).sum(axis=0)
        self.covariance *= np.minimum(self.forgetting**-FORGET_EVERY, 1.0 / trace)

    def inflate(self, which: NDArray[np.bool_]) -> None:
        """After an alarm: what is known of these sites is their group's spread, around here."""
        self.covariance[:, :, which] = self.prior[:, :, which]

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean.tolist(),
            "covariance": self.covariance.tolist(),
            "prior": self.prior.tolist(),
            "noise": self.noise,
            "forgetting": self.forgetting,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Sites:
        mean, covariance = np.array(record["mean"]), np.array(record["covariance"])
        sites = cls(mean, covariance, float(record["noise"]), float(record["forgetting"]))
        sites.open(np.array(record["prior"]))
        return sites


class Recorder:
    """Collects samples on the step path; folds them into statistics every `length` steps."""

    def __init__(self, num_features: int, num_sites: int, length: int = 32) -> None:
        self.statistics = Statistics.empty(num_features, num_sites)
        self._z = np.empty((length, num_features, num_sites))
        self._us = np.empty((length, num_sites))
        self._filled = 0

    def add(self, z: Array, us: Array) -> None:
        self._z[self._filled] = z
        self._us[self._filled] = us
        self._filled += 1
        if self._filled == len(self._us):
            self._fold()

    def take(self) -> Statistics:
        """Everything since the last call, to be shipped; starts afresh."""
        self._fold()
        taken = self.statistics
        self.statistics = Statistics.empty(*taken.moment.shape[1:])
        return taken

    def _fold(self) -> None:
        self.statistics.add(self._z[: self._filled], self._us[: self._filled])
        self._filled = 0
