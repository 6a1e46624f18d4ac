"""CellScope as published (Iyer et al., MobiCom'18), kept as the baseline to beat.

    similarity  SF(A, B) = w_distance * sum_{i<=k} sum_j |a_ij - b_ij| over PCA loadings
    groups      connected components of the graph with an edge where SF < threshold
    model       h(x) = m_s . (1, f_1(x) .. f_c(x)): boosted trees per group, linear weights per site

Loadings are taken as the decomposition returns them, signs included, and compare what the sites
were asked, not what they answered: both are its properties, not slips (../README.md).
Departure: the site's weights are a ridge towards the ensemble's own sum where the paper has an L1
penalty, so that the online update is exact. Needs scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

VARIANCE: Final = 0.95  # share that the k components explain
COMPONENTS: Final = 4  # blocks of consecutive trees that a site weighs
TREES: Final = 40  # of the offline ensemble
TREES_PER_REFRESH: Final = 10
RIDGE: Final = 1.0  # samples that a site's starting weights count for, per unit of log time


def loadings(matrices: Array) -> Array:
    """[S, n, j] measurements -> [S, k, j]; k is what the most varied site needs for VARIANCE."""
    centred = matrices - matrices.mean(axis=1, keepdims=True)
    _, strength, directions = np.linalg.svd(centred, full_matrices=False)
    explained = np.cumsum(strength**2, axis=1)
    enough = explained >= VARIANCE * explained[:, -1:]
    return np.asarray(directions[:, : int(enough.argmax(axis=1).max()) + 1])


def similarity(loads: Array, distance: Array) -> Array:
    """SF [S, S], small where alike; distance [S, S] is w_distance."""
    return np.asarray(distance * np.abs(loads[:, None] - loads[None]).sum(axis=(2, 3)))


def components(score: Array, threshold: float) -> Labels:
    """Connected components of the graph with an edge where score < threshold."""
    group = np.arange(len(score))
    for i, j in zip(*np.nonzero(np.triu(score < threshold, 1)), strict=True):
        group[group == group[j]] = group[i]
    return np.asarray(np.unique(group, return_inverse=True)[1], dtype=np.int64)


class CellScope:
    """Grouped multi-task model of log time. Rows are [S, n, features]."""

    def __init__(self, threshold: float, seed: int = 0) -> None:
        self.threshold = threshold
        self.seed = seed
        self.group: Labels = np.zeros(0, dtype=np.int64)
        self.ensembles: list[Any] = []
        self.weights: Array = np.zeros((0, 0))  # [S, 1 + COMPONENTS]
        self.covariance: Array = np.zeros((0, 0, 0))

    def fit(self, rows: Array, us: Array, distance: Array | None = None) -> CellScope:
        ensemble = boosted_trees()
        num_sites = len(rows)
        measured = np.concatenate([rows, us[:, :, None]], axis=2)
        spread = measured.std(axis=(0, 1))
        measured = measured / np.where(spread > 0.0, spread, 1.0)
        if distance is None:
            distance = np.ones((num_sites, num_sites))
        self.group = components(similarity(loadings(measured), distance), self.threshold)
        self.ensembles = []
        for each in range(int(self.group.max()) + 1):
            members = self.group == each
            trees = ensemble(
                n_estimators=TREES, max_depth=3, random_state=self.seed, warm_start=True
            )
            x, y = rows[members].reshape(-1, rows.shape[2]), np.log(us[members]).ravel()
            self.ensembles.append(trees.fit(x, y))
        self.weights = np.ones((num_sites, 1 + COMPONENTS))
        self.covariance = np.repeat(np.eye(1 + COMPONENTS)[None], num_sites, axis=0) / RIDGE
        parts = self.parts(rows)
        for sample in range(rows.shape[1]):
            self._learn(parts[:, sample], np.log(us[:, sample]))
        return self

    def parts(self, rows: Array) -> Array:
        """[S, n, 1 + COMPONENTS]: the ensemble's mean and its blocks of trees, whose sum it is."""
        parts = np.empty((*rows.shape[:2], 1 + COMPONENTS))
        for each, trees in enumerate(self.ensembles):
            members = self.group == each
            x = rows[members].reshape(-1, rows.shape[2])
            stages = np.array(list(trees.staged_predict(x)))
            start = float(trees.init_.constant_[0, 0])
            ends = stages[np.linspace(0, len(stages), COMPONENTS + 1).astype(int)[1:] - 1]
            steps = np.diff(np.concatenate([np.full((1, len(x)), start), ends]), axis=0)
            values = np.concatenate([np.full((1, len(x)), start), steps]).T
            parts[members] = values.reshape(int(members.sum()), -1, 1 + COMPONENTS)
        return parts

    def predict(self, rows: Array) -> Array:
        """us [S, n]."""
        return np.asarray(np.exp((self.parts(rows) * self.weights[:, None]).sum(axis=2)))

    def update(self, rows: Array, us: Array) -> None:
        """One sample per site, [S, features] and [S]: moves the sites' weights, not the trees."""
        self._learn(self.parts(rows[:, None])[:, 0], np.log(us))

    def refresh(self, rows: Array, us: Array) -> None:
        """Append trees that fit what is new."""
        for each, trees in enumerate(self.ensembles):
            members = self.group == each
            trees.set_params(n_estimators=trees.n_estimators + TREES_PER_REFRESH)
            trees.fit(rows[members].reshape(-1, rows.shape[2]), np.log(us[members]).ravel())

    def _learn(self, part: Array, target: Array) -> None:
        px = np.einsum("sij,sj->si", self.covariance, part)
        gain = px / (1.0 + (part * px).sum(axis=1))[:, None]
        self.weights += gain * (target - (part * self.weights).sum(axis=1))[:, None]
        self.covariance -= gain[:, :, None] * px[:, None]


def boosted_trees() -> Any:
    try:
        return import_module("sklearn.ensemble").GradientBoostingRegressor
    except ImportError as error:
        raise RuntimeError(
            "the CellScope baseline needs scikit-learn: pip install scikit-learn"
        ) from error
