"""The compared models. Each learns a window of n samples per site and predicts another window.

Ridge strengths and CellScope's threshold are the best on the tuning seeds over all window lengths
(`experiment.py --tune`), so that every baseline is at its best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.cellscope.fleet import Array, Fleet, Sites, Window
from benchmarks.cellscope.models import groups
from benchmarks.cellscope.models.cellscope import CellScope
from benchmarks.cellscope.models.groups import Fit, Layout, numbered
from benchmarks.cellscope.models.sites import Statistics

RAW_RIDGE: Final = 0.03
PHYSICS_SPREAD: Final = 0.5
CELLSCOPE_THRESHOLD: Final = 1.0
FLOOR_US: Final = 5.0  # no prediction is below

Predict = Callable[[Window], Array]  # [S, n] us


def layout_of(fleet: Sites) -> Layout:
    return Layout.of(fleet.replica.tolist(), fleet.layer.tolist(), fleet.block)


def linear(weights: Array) -> Predict:
    """weights [S, d] of the physics features."""
    return lambda test: np.maximum((test.physics * weights[:, None]).sum(axis=2), FLOOR_US)


def law_of(fit: Fit) -> Predict:
    return linear(fit.scale * fit.effects.mean)


def local_raw(fleet: Sites, window: Window, ridge: float = RAW_RIDGE) -> Predict:
    """Ridge per site on the counters, standardised over the fleet, towards the site's mean."""
    mean, spread = window.raw.mean(axis=(0, 1)), window.raw.std(axis=(0, 1))
    x = (window.raw - mean) / spread
    y = np.log(window.us)
    home, level = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    x, y = x - home, y - level
    gram = np.einsum("sni,snj->sij", x, x) + ridge * np.eye(x.shape[2])
    weights = np.linalg.solve(gram, np.einsum("sni,sn->si", x, y)[..., None])

    def predict(test: Window) -> Array:
        away = (test.raw - mean) / spread - home
        return np.asarray(np.exp(level + (away @ weights)[..., 0]))

    return predict


def local_physics(fleet: Sites, window: Window, spread: float = PHYSICS_SPREAD) -> Predict:
    """Ridge per site on the physics features, the launch term free."""
    statistics = Statistics.of_rows(window.physics, window.us)
    scale = groups.scale_of(statistics)
    data = groups.data_of(statistics, layout_of(fleet), scale, [0, 1])
    return linear(scale * data.alone(spread=spread)[0])


def global_physics(fleet: Sites, window: Window) -> Predict:
    """One law for the whole fleet."""
    x = (window.physics / window.us[:, :, None]).reshape(-1, window.physics.shape[2])
    weights = np.linalg.lstsq(x, np.ones(len(x)), rcond=None)[0]
    return linear(np.repeat(weights[None], len(window.us), axis=0))


def per_group(fleet: Sites, window: Window, group: groups.Labels) -> Predict:
    """The paper's way of sharing: one law per group of sites."""
    weights = np.empty((len(window.us), window.physics.shape[2]))
    for each in np.unique(group):
        x = window.physics[group == each] / window.us[group == each][:, :, None]
        x = x.reshape(-1, x.shape[2])
        weights[group == each] = np.linalg.lstsq(x, np.ones(len(x)), rcond=None)[0]
    return linear(weights)


def spatial(fleet: Sites, window: Window) -> Predict:
    return per_group(fleet, window, numbered(fleet.host))


def cellscope(fleet: Sites, window: Window, threshold: float = CELLSCOPE_THRESHOLD) -> Predict:
    """Both the counters and the physics features: it was published with features made by hand."""
    model = CellScope(threshold).fit(both(window), window.us)
    return lambda test: model.predict(both(test))


def both(window: Window) -> Array:
    return np.concatenate([window.raw, window.physics[:, :, 1:]], axis=2)


def forced(fleet: Sites, window: Window, group: groups.Labels) -> Predict:
    """Our model under a given grouping of replicas."""
    statistics = Statistics.of_rows(window.physics, window.us)
    return law_of(groups.fit(statistics, layout_of(fleet), fleet.probe(), group=group))


def oracle_groups(fleet: Fleet) -> groups.Labels:
    first = np.unique(fleet.replica, return_index=True)[1]
    return numbered([fleet.hidden[i] for i in first])


def oracle(fleet: Fleet, window: Window) -> Predict:
    return forced(fleet, window, oracle_groups(fleet))


def random_groups(fleet: Fleet, window: Window) -> Predict:
    """Sizes of the true groups, members drawn from the block."""
    rng = np.random.default_rng([fleet.seed, 3])
    blocks = layout_of(fleet).block_of_replica
    return forced(fleet, window, groups.shuffle(oracle_groups(fleet), blocks, rng))


def crossed_only(fleet: Sites, window: Window) -> Predict:
    return forced(fleet, window, layout_of(fleet).block_of_replica)


def fit_ours(fleet: Sites, window: Window) -> Fit:
    statistics = Statistics.of_rows(window.physics, window.us)
    return groups.fit(statistics, layout_of(fleet), fleet.probe(), seed=fleet.seed)


def ours(fleet: Sites, window: Window) -> Predict:
    return law_of(fit_ours(fleet, window))


# Models that learn from the samples alone, and others that are given hidden states, for comparison.
LEARNED: Final[dict[str, Callable[[Sites, Window], Predict]]] = {
    "local raw": local_raw,
    "local physics": local_physics,
    "global physics": global_physics,
    "spatial (host)": spatial,
    "literal CellScope": cellscope,
    "ours, no groups": crossed_only,
    "ours": ours,
}
MODELS: Final[dict[str, Callable[[Fleet, Window], Predict]]] = {
    **LEARNED,
    "random groups": random_groups,
    "oracle groups": oracle,
}
