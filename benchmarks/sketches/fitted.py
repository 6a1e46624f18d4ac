"""A bundled model's sketches, from the frontier's instrument: sums over forced problems."""

from __future__ import annotations

import torch

from benchmarks.frontier.forced import Forced
from benchmarks.frontier.sensitivity import inputs_of, output_of
from lynx_sglang.calibrate.sketch_fit import Moments
from lynx_sglang.calibrate.sketch_layer import ExpertSums, FittedLayer
from models.experts import Experts

HELD_OUT = 4  # one problem in so many judges a fit


@torch.inference_mode()
def fitted(forced: Forced) -> dict[int, FittedLayer]:
    """Each layer's sketches, from tokens weighted by the squares of the router's weights."""
    layers = {}
    judges = forced.problem % HELD_OUT == 0
    for index, (layer, x) in enumerate(inputs_of(forced).items()):
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
            experts.append(ExpertSums(*both))
        layers[index] = FittedLayer.of(experts, spares_judges=False)
    return layers
