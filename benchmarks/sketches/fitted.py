"""A model's sketches: fitted on most training problems, judged on the others, put in a budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.frontier.forced import Forced
from benchmarks.frontier.sensitivity import inputs_of, output_of
from benchmarks.sketches.allocation import Option, allocate
from benchmarks.sketches.factors import Factors, Sketch
from benchmarks.sketches.fit import Fit, Moments, fit
from models.experts import Experts

RIDGES = (1e-3, 1e-2, 1e-1)
MAX_RANK = 16
HELD_OUT = 4  # one problem in so many judges a fit


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert's sums over tokens that fit and over those that judge."""

    fitting: Moments
    judging: Moments

    @property
    def all(self) -> Moments:
        return self.fitting + self.judging

    def fits(self, ridge: float) -> list[Fit]:
        """Through the origin and through the means; none without tokens."""
        if not self.fitting.mass:
            return []
        return [fit(self.fitting, ridge, is_centred) for is_centred in (False, True)]


@dataclass(frozen=True, slots=True)
class Budgeted:
    """Sketches of all layers within a budget.

    contribution: per layer float32 [E], the root mean square of what an expert's sketch misses,
    over the layer's largest; unexplained: share of held-out energy that all sketches miss.
    """

    factors: list[Factors]
    contribution: list[Tensor]
    unexplained: float
    ranks: list[int]


@torch.inference_mode()
def gather(forced: Forced) -> list[list[Expert]]:
    """Sums of each layer's experts, weighted by the squares of the router's weights."""
    layers = []
    judges = forced.problem % HELD_OUT == 0
    for layer, x in inputs_of(forced).items():
        _, ids, weights = Experts.choose(layer, layer.router(x))
        experts = []
        for expert in range(len(layer.down)):
            rows, slots = (ids == expert).nonzero(as_tuple=True)
            both = []
            for chosen in (~judges[rows], judges[rows]):
                mine = rows[chosen]
                sums = Moments.empty(x.shape[1])
                sums.note(
                    x[mine], output_of(layer, expert, x[mine]), weights[mine, slots[chosen]] ** 2
                )
                both.append(sums)
            experts.append(Expert(*both))
        layers.append(experts)
    return layers


class Sketches:
    """A model's sketches at any budget: one ridge for all, that which explains most held out."""

    def __init__(self, layers: list[list[Expert]]) -> None:
        self.layers = layers
        self.energy = sum(each.judging.energy for experts in layers for each in experts)
        options = {ridge: self._options(ridge) for ridge in RIDGES}
        self.ridge = max(
            RIDGES,
            key=lambda ridge: sum(
                max((gain for _, gain in each), default=0.0) for each in options[ridge]
            ),
        )
        self.options = options[self.ridge]

    def _options(self, ridge: float) -> list[list[Option]]:
        """Sizes and held-out energies of ranks 0 to MAX_RANK, without a bias and then with one."""
        found: list[list[Option]] = []
        for expert in (each for experts in self.layers for each in experts):
            hidden, each = len(expert.fitting.x), []
            for one in expert.fits(ridge):
                gains = one.explained(expert.judging).tolist()
                bias = 0 if one.centre is None else 1
                each += [(hidden * (2 * r + bias), gains[r]) for r in range(bias ^ 1, MAX_RANK + 1)]
            found.append(each)
        return found

    def within(self, numbers: int) -> Budgeted:
        """The sketches of at most so many numbers, fitted anew on all tokens."""
        chosen = iter(allocate(self.options, numbers))
        flat, factors, missed, ranks, explained = iter(self.options), [], [], [], 0.0
        for experts in self.layers:
            sketches, misses = [], torch.zeros(len(experts))
            for index, expert in enumerate(experts):
                option, offered, sums = next(chosen), next(flat), expert.all
                hidden, left = len(sums.x), sums.energy
                if option is None:
                    sketch = Sketch(torch.zeros(0, hidden), torch.zeros(hidden, 0))
                else:
                    is_centred = option >= MAX_RANK
                    rank = option - MAX_RANK if is_centred else option + 1
                    final = fit(sums, self.ridge, is_centred)
                    sketch = final.at(rank)
                    left -= float(final.explained(sums)[rank])
                    explained += offered[option][1]
                sketches.append(sketch)
                ranks.append(len(sketch.down))
                misses[index] = (max(left, 0.0) / sums.mass) ** 0.5 if sums.mass else 0.0
            factors.append(Factors.of(sketches))
            missed.append(misses / misses.max().clamp(min=1e-12))
        return Budgeted(factors, missed, 1 - explained / self.energy, ranks)
