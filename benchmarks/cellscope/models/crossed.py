"""Empirical Bayes for sites that share: w_{r,l} = w_0 + w_g + a_r + b_l + e_{r,l}, all normal.

Each kind of effect has its own covariance, learned from its spread over levels (EM, with a weak
inverse-Wishart prior that keeps it positive where levels are few). Given those, the posterior of
every effect is one linear solve on sufficient statistics: e is integrated out per site, the rest is
a dense system of (1 + groups + replicas + layers) * d unknowns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

ROUNDS: Final = 10  # of EM; the errors of prediction no longer move after five
SPREAD: Final = 0.2  # prior standard deviation of an effect, in units of the features' scale
OWN: Final = 0.2  # the same of e, as a share of SPREAD
STRENGTH: Final = 4.0  # levels that a covariance's prior weighs
NOISE: Final = 0.0025  # prior relative variance of a sample: 5 % squared
NOISE_STRENGTH: Final = 10.0  # samples that it weighs


@dataclass(frozen=True, slots=True)
class Crossed:
    """The posterior. Effect 0 is the fleet's; then as the labels came."""

    mean: Array  # [S, d]
    covariance: Array  # [S, d, d]
    noise: float
    effect_mean: list[Array]  # per kind [levels, d]
    joint: Array  # covariance of all effects, kinds and levels in order
    spread: list[Array]  # per kind [d, d]
    own: Array  # [d, d] covariance of e

    def prior(self, levels: Sequence[int | None]) -> tuple[Array, Array]:
        """Law of a site never seen, by its level per kind (after the fleet's); None: a new one."""
        d = len(self.own)
        known: list[int] = []
        mean, covariance, start = np.zeros(d), self.own.copy(), 0
        for level, effects, spread in zip((0, *levels), self.effect_mean, self.spread, strict=True):
            if level is None:
                covariance += spread
            else:
                mean += effects[level]
                known.append(start + level * d)
            start += effects.size
        for i in known:
            for j in known:
                covariance += self.joint[i : i + d, j : j + d]
        return mean, covariance


def fit(gram: Array, moment: Array, count: Array, labels: Sequence[Labels]) -> Crossed:
    """From [S, d, d], [S, d], [S] (target 1, features scaled to about 1) and labels per kind."""
    num_sites, d = moment.shape
    kinds = [np.zeros(num_sites, dtype=np.int64), *labels]
    design = Design(kinds)
    levels = design.levels
    starts = np.cumsum([0, *levels]) * d
    at = [s + k[:, None] * d + np.arange(d) for s, k in zip(starts[:-1], kinds, strict=True)]
    weak = np.eye(d) * SPREAD**2
    spread = [weak * 100.0, *(weak.copy() for _ in labels)]
    own = weak * OWN**2
    noise = NOISE
    for round_number in range(ROUNDS):
        precise = gram / noise
        toward = inverse(np.eye(d) + precise @ own)
        weight = toward @ precise  # precision of a site's data about everything but e
        pull = apply(toward, moment / noise)
        joint = inverse(design.system(weight, spread))
        joint = (joint + joint.T) / 2.0
        right = np.zeros(starts[-1])
        for place in at:
            np.add.at(right, place, pull)
        effects = joint @ right
        shared = np.stack([effects[place] for place in at]).sum(axis=0)
        parts = [joint[p[:, :, None], q[:, None, :]] for p in at for q in at]
        shared_cov = np.stack(parts).sum(axis=0)
        own_cov = inverse(inverse(own) + precise)
        e = apply(own_cov, moment / noise - apply(precise, shared))
        used = own_cov @ precise
        rest = np.eye(d) - used
        mean = shared + e
        covariance = own_cov + rest @ shared_cov @ rest.transpose(0, 2, 1)
        covariance = (covariance + covariance.transpose(0, 2, 1)) / 2.0
        if round_number == ROUNDS - 1:
            break
        for kind in range(1, len(kinds)):
            values = effects[starts[kind] : starts[kind + 1]].reshape(-1, d)
            total = STRENGTH * weak + values.T @ values
            for i in range(starts[kind], starts[kind + 1], d):
                total += joint[i : i + d, i : i + d]
            spread[kind] = total / (STRENGTH + levels[kind])
        e_cov = own_cov + used @ shared_cov @ used.transpose(0, 2, 1)
        own = (STRENGTH * OWN**2 * weak + e.T @ e + e_cov.sum(axis=0)) / (STRENGTH + num_sites)
        misfit = squared_error(gram, moment, count, mean) + np.einsum(
            "sij,sji->s", gram, covariance
        )
        noise = float((misfit.sum() + NOISE_STRENGTH * NOISE) / (count.sum() + NOISE_STRENGTH))
    per_kind = [
        effects[starts[kind] : starts[kind + 1]].reshape(-1, d) for kind in range(len(kinds))
    ]
    return Crossed(mean, covariance, noise, per_kind, joint, spread, own)


def inverse(matrix: Array) -> Array:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def apply(matrix: Array, vector: Array) -> Array:
    return np.asarray((matrix @ vector[..., None])[..., 0])


def squared_error(gram: Array, moment: Array, count: Array, mean: Array) -> Array:
    """Sum of (1 - x'w)^2 per site, from statistics alone."""
    return np.asarray(
        count - 2.0 * (mean * moment).sum(axis=1) + (mean * apply(gram, mean)).sum(axis=1)
    )


class Design:
    """The levels that sites share; sums over them are prepared once per fit."""

    def __init__(self, kinds: Sequence[Labels]) -> None:
        self.levels = [int(each.max()) + 1 for each in kinds]
        self.pairs = []
        for p, kind_p in enumerate(kinds):
            for q, kind_q in enumerate(kinds[: p + 1]):
                keys = kind_p * self.levels[q] + kind_q
                order = np.argsort(keys, kind="stable")
                present, first = np.unique(keys[order], return_index=True)
                self.pairs.append((p, q, order, present, first))

    def system(self, weight: Array, spread: Sequence[Array]) -> Array:
        """Joint precision of all effects, from each site's."""
        d = weight.shape[-1]
        starts = np.cumsum([0, *self.levels]) * d
        matrix = np.zeros((starts[-1], starts[-1]))
        for p, q, order, present, first in self.pairs:
            rows, columns = self.levels[p], self.levels[q]
            blocks = np.zeros((rows * columns, d, d))
            blocks[present] = np.add.reduceat(weight[order], first)
            if p == q:
                blocks[:: columns + 1] += inverse(spread[p])
            square = blocks.reshape(rows, columns, d, d).transpose(0, 2, 1, 3)
            flat = square.reshape(rows * d, columns * d)
            matrix[starts[p] : starts[p + 1], starts[q] : starts[q + 1]] = flat
            matrix[starts[q] : starts[q + 1], starts[p] : starts[p + 1]] = flat.T
        return matrix
