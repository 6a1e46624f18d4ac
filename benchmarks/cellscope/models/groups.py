"""Groups of replicas with one cost law, found from their responses, and the priors that follow.

    fingerprint  r = log(probe w),  V = J P J',  J = probe / (probe w)
    distance     D2 = (r - r')' (V + V' + eps I)^-1 (r - r') / q
    groups       average linkage on D2, never across blocks (hardware, layout, quantisation)

A grouping is kept only if, fitted on one half of the samples and judged on the other, it beats no
grouping, random groups of the same sizes (the best of as many tries) and the local physics model.
Where it does not, what is left is the crossed structure of replicas and layers, and where that
loses too, every site on its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.cellscope.models import crossed
from benchmarks.cellscope.models.crossed import Crossed
from benchmarks.cellscope.models.sites import Sites, Statistics, posterior

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

TOLERANCE: Final = 0.05  # sqrt(eps): replicas this close are alike, however well they are known
TRIES: Final = 3  # group counts tried beyond the number of blocks
LOCAL_SPREAD: Final = 0.5  # prior standard deviation of a local model's weights, scaled


class Structure(Enum):
    """The centre that a site is shrunk to."""

    GROUPS = "groups"
    CROSSED = "crossed"  # its block, replica and layer
    LOCAL = "local"  # nothing


@dataclass(frozen=True, slots=True)
class Verdict:
    """Held-out relative errors, and what they led to."""

    structure: Structure
    num_groups: int
    groups: float
    random: float
    crossed: float
    local: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The place of each site: [S] labels, numbered from 0 without holes."""

    replica: Labels
    layer: Labels
    block: Labels

    @classmethod
    def of(
        cls, replica: Sequence[Hashable], layer: Sequence[Hashable], block: Sequence[Hashable]
    ) -> Layout:
        if not len(replica) == len(layer) == len(block) > 0:
            raise ValueError("replica, layer and block must have one label per site")
        layout = cls(numbered(replica), numbered(layer), numbered(block))
        if (layout.block_of_replica[layout.replica] != layout.block).any():
            raise ValueError("a replica cannot be in two blocks")
        return layout

    @property
    def block_of_replica(self) -> Labels:
        blocks = np.zeros(self.replica.max() + 1, dtype=np.int64)
        blocks[self.replica] = self.block
        return blocks

    def kinds(self, group: Labels | None) -> list[Labels]:
        """Effects of a site after the fleet's: block, (group,) replica, layer."""
        grouped = [] if group is None else [group[self.replica]]
        return [self.block, *grouped, self.replica, self.layer]


@dataclass(frozen=True, slots=True)
class Fit:
    """Laws of all sites, in the features' own units."""

    layout: Layout
    group: Labels  # [replicas]; the block where no grouping was kept
    verdict: Verdict
    scale: Array  # [d]
    effects: Crossed  # of features times scale

    def sites(self, which: Labels | None = None, forgetting: float = 0.995) -> Sites:
        """Online models of these sites (all), which start where the fit ends."""
        at = np.arange(len(self.layout.replica)) if which is None else which
        effects = self.effects
        mean = (self.scale * effects.mean[at]).T
        sites = Sites(mean, self._physical(effects.covariance[at]), effects.noise, forgetting)
        reopened = np.stack([*effects.spread[1:], effects.own]).sum(axis=0)
        sites.open(self._physical(np.repeat(reopened[None], len(at), axis=0)))
        return sites

    def newcomer(self, block: int, layers: Sequence[int | None]) -> Sites:
        """A replica never seen; None: a layer never seen. Its group shows in the next fit."""
        kinds = len(self.effects.spread) - 4  # 1 if groups were kept
        priors = [self.effects.prior([block, *[None] * kinds, None, each]) for each in layers]
        mean = np.array([each[0] for each in priors])
        covariance = np.array([each[1] for each in priors])
        return Sites((self.scale * mean).T, self._physical(covariance), self.effects.noise)

    def _physical(self, covariance: Array) -> Array:
        return (covariance * np.outer(self.scale, self.scale)).transpose(1, 2, 0)


@dataclass(frozen=True, slots=True)
class Data:
    """Scaled sufficient statistics, sites first."""

    gram: Array  # [S, d, d]
    moment: Array  # [S, d]
    count: Array  # [S]
    layout: Layout

    def solve(self, group: Labels | None) -> Crossed:
        return crossed.fit(self.gram, self.moment, self.count, self.layout.kinds(group))

    def alone(
        self, noise: float = crossed.NOISE, spread: float = LOCAL_SPREAD
    ) -> tuple[Array, Array]:
        """Local physics: a ridge per site, launch free."""
        d = self.moment.shape[1]
        weak = np.full(d, spread**2)
        weak[0] *= 100.0
        shrunk = posterior(self.gram, self.moment, noise, np.zeros(d), np.diag(weak)[None])
        return shrunk[0], shrunk[1]

    def error(self, mean: Array) -> float:
        """Relative error of these laws on this data: root mean square per site, mean over sites."""
        squared = crossed.squared_error(self.gram, self.moment, self.count, mean)
        seen = self.count > 0.0
        if not seen.any():
            return float("inf")
        return float(np.sqrt(squared[seen].clip(0.0) / self.count[seen]).mean())


def fit(
    statistics: Statistics, layout: Layout, probe: Array, seed: int = 0, group: Labels | None = None
) -> Fit:
    """From all sites' statistics; probe [q, d]: loads whose times are compared.

    `group` [replicas] forces a grouping, unjudged: for baselines.
    """
    scale = scale_of(statistics)
    halves = [data_of(statistics, layout, scale, [half]) for half in (0, 1)]
    data = data_of(statistics, layout, scale, [0, 1])
    if group is not None:
        nothing = float("nan")
        number = int(group.max()) + 1
        verdict = Verdict(Structure.GROUPS, number, nothing, nothing, nothing, nothing)
        return Fit(layout, group, verdict, scale, data.solve(group))
    probe = probe * scale
    verdict = judge(halves, probe, seed)
    effects = data.solve(None)
    group = layout.block_of_replica
    if verdict.structure is Structure.GROUPS:
        group = linkage(effects, layout, probe)[verdict.num_groups]
        effects = data.solve(group)
    elif verdict.structure is Structure.LOCAL:
        mean, covariance = data.alone(effects.noise)
        effects = replace(effects, mean=mean, covariance=covariance)
    return Fit(layout, group, verdict, scale, effects)


def scale_of(statistics: Statistics) -> Array:
    """1 / root mean square of each x = z / us: a weight of 1 explains the whole step."""
    power = np.einsum("hiis->i", statistics.gram) / max(float(statistics.count.sum()), 1.0)
    return np.asarray(1.0 / np.sqrt(np.where(power > 0.0, power, 1.0)))


def data_of(statistics: Statistics, layout: Layout, scale: Array, halves: Sequence[int]) -> Data:
    if statistics.count.shape[1] != len(layout.replica):
        raise ValueError(
            f"statistics are of {statistics.count.shape[1]} sites, the layout of "
            f"{len(layout.replica)}"
        )
    take = list(halves)
    gram = statistics.gram[take].sum(axis=0).transpose(2, 0, 1) * np.outer(scale, scale)
    moment = statistics.moment[take].sum(axis=0).T * scale
    return Data(gram, moment, statistics.count[take].sum(axis=0), layout)


def judge(halves: Sequence[Data], probe: Array, seed: int) -> Verdict:
    """Fit on one half, test on the other, both ways."""
    rng = np.random.default_rng(seed)
    layout = halves[0].layout
    blocks = int(layout.block.max()) + 1
    most = min(blocks + TRIES, len(layout.block_of_replica) - 1)
    counts = range(blocks + 1, most + 1)
    grouped, shuffled = {each: 0.0 for each in counts}, {each: 0.0 for each in counts}
    plain = local = 0.0
    for train, test in (halves, halves[::-1]):
        effects = train.solve(None)
        plain += test.error(effects.mean) / 2.0
        local += test.error(train.alone(effects.noise)[0]) / 2.0
        cuts = linkage(effects, layout, probe)
        for each in counts:
            grouped[each] += test.error(train.solve(cuts[each]).mean) / 2.0
            mixed = shuffle(cuts[each], layout.block_of_replica, rng)
            shuffled[each] += test.error(train.solve(mixed).mean) / 2.0
    best = min(grouped, key=lambda each: grouped[each], default=blocks)
    groups, random = grouped.get(best, np.inf), min(shuffled.values(), default=np.inf)
    if groups < min(random, plain, local):
        structure = Structure.GROUPS
    else:
        structure = Structure.CROSSED if plain <= local else Structure.LOCAL
    return Verdict(structure, best, groups, random, plain, local)


def fingerprints(effects: Crossed, layout: Layout, probe: Array) -> tuple[Array, Array]:
    """r [replicas, q] and V [replicas, q, q]: log times of the probe, mean over the layers."""
    num_replicas = len(layout.block_of_replica)
    member = (layout.replica == np.arange(num_replicas)[:, None]).astype(np.float64)
    member /= member.sum(axis=1, keepdims=True)
    law = member @ effects.mean
    known = np.einsum("rs,sij->rij", member, effects.covariance)
    us = np.maximum(law @ probe.T, 1e-9)
    slope = probe / us[:, :, None]
    return np.log(us), slope @ known @ slope.transpose(0, 2, 1)


def linkage(effects: Crossed, layout: Layout, probe: Array) -> dict[int, Labels]:
    """Groups of replicas by their number, from one each down to one per block."""
    r, v = fingerprints(effects, layout, probe)
    blocks = layout.block_of_replica
    num_replicas, q = r.shape
    apart = np.full((num_replicas, num_replicas), np.inf)
    for i in range(num_replicas):
        for j in range(i):
            if blocks[i] == blocks[j]:
                away = r[i] - r[j]
                spread = v[i] + v[j] + TOLERANCE**2 * np.eye(q)
                apart[i, j] = apart[j, i] = away @ np.linalg.solve(spread, away) / q
    weight = np.ones(num_replicas)
    group = np.arange(num_replicas)
    cuts = {num_replicas: group.copy()}
    for number in range(num_replicas - 1, int(blocks.max()), -1):
        i, j = sorted(divmod(int(np.argmin(apart)), num_replicas))
        share = weight[i] / (weight[i] + weight[j])
        merged = share * apart[i] + (1.0 - share) * apart[j]
        apart[i], apart[:, i] = merged, merged
        apart[j], apart[:, j], apart[i, i] = np.inf, np.inf, np.inf
        weight[i] += weight[j]
        group[group == j] = i
        cuts[number] = numbered(group.tolist())
    return cuts


def shuffle(group: Labels, block: Labels, rng: np.random.Generator) -> Labels:
    """Groups of the same sizes at random, within blocks."""
    mixed = group.copy()
    for each in np.unique(block):
        members = np.flatnonzero(block == each)
        mixed[members] = group[rng.permutation(members)]
    return mixed


def numbered(labels: Sequence[Hashable]) -> Labels:
    """Labels as numbers, in order of appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(each, len(seen)) for each in labels], dtype=np.int64)
