"""Ranks of the experts' sketches: the most held-out energy for a number of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lynx_kernels.sketch import LayerSketches, Sketch
from lynx_sglang.calibrate.expert_outputs import contributions_of
from lynx_sglang.calibrate.sketch_layer import FittedLayer
from lynx_sglang.sketches import StandIns

Option = tuple[int, float]  # numbers that it reads, energy that it explains


def hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the upper concave hull, from (0, 0), by rising size."""
    corners: list[tuple[int, int, float]] = [(-1, 0, 0.0)]
    for index in sorted(range(len(options)), key=lambda i: (options[i][0], -options[i][1], i)):
        size, gain = options[index]
        if gain <= corners[-1][2]:
            continue
        while len(corners) > 1 and (gain - corners[-1][2]) * (corners[-1][1] - corners[-2][1]) >= (
            corners[-1][2] - corners[-2][2]
        ) * (size - corners[-1][1]):
            corners.pop()
        corners.append((index, size, gain))
    return [index for index, _, _ in corners[1:]]


def allocate(options: Sequence[Sequence[Option]], budget: int) -> list[int | None]:
    """The option of each expert, None for no sketch; their sizes add up to at most `budget`.

    Greedy by energy per number along each expert's hull; ties go to the lower expert.

    Raises:
        ValueError: a negative budget.
    """
    if budget < 0:
        raise ValueError(f"budget: expected at least 0 numbers, got {budget}")
    steps = []
    for expert, each in enumerate(options):
        size, gain = 0, 0.0
        for place, index in enumerate(hull(each)):
            more = each[index][0] - size
            value = (each[index][1] - gain) / more
            steps.append((-value, expert, place, index, more))
            size, gain = each[index]
    chosen: list[int | None] = [None] * len(options)
    is_full = [False] * len(options)  # a step that does not fit ends an expert's hull
    for _, expert, _, index, more in sorted(steps):
        is_full[expert] |= more > budget
        if not is_full[expert]:
            chosen[expert] = index
            budget -= more
    return chosen


@dataclass(frozen=True, slots=True)
class Budgeted:
    """Sketches of all layers within a budget.

    layers: by layer id; unexplained: share of each layer's held-out energy that its sketches miss;
    ranks: of each layer's experts.
    """

    layers: dict[int, StandIns]
    unexplained: dict[int, float]
    ranks: dict[int, list[int]]


def within(fitted: Mapping[int, FittedLayer], numbers: int) -> Budgeted:
    """The sketches of at most so many numbers, in all layers together."""
    picked = iter(
        allocate([each for layer in fitted.values() for each in options_of(layer)], numbers)
    )
    layers, unexplained, ranks = {}, {}, {}
    for layer_id, layer in fitted.items():
        hidden = layer.down.shape[-1]
        sketches, misses, covers, explained = [], [], [], 0.0
        for expert in range(len(layer.down)):
            option = next(picked)
            gain, missed = 0.0, float(layer.energy[expert])
            sketch = Sketch(torch.zeros(0, hidden), torch.zeros(hidden, 0))
            if option is not None:
                form, rank = divmod(option, layer.down.shape[2] + 1)
                sketch = layer.sketch(expert, form, rank)
                gain = float(layer.explained[expert, form, rank])
                missed = float(layer.missed[expert, form, rank])
            sketches.append(sketch)
            explained += gain
            judged = float(layer.judged[expert])
            misses.append(missed)
            covers.append(1.0 - max(1.0 - gain / judged, 0.0) ** 0.5 if judged > 0 else 0.0)
        layers[layer_id] = StandIns(
            LayerSketches.of(sketches),
            contributions_of(torch.tensor(misses, dtype=torch.float64), layer.mass),
            torch.tensor(covers).clamp(0.0, 1.0).float(),
        )
        unexplained[layer_id] = 1.0 - explained / max(float(layer.judged.sum()), 1e-30)
        ranks[layer_id] = [len(each.down) for each in sketches]
    return Budgeted(layers, unexplained, ranks)


def options_of(layer: FittedLayer) -> list[list[Option]]:
    """Of each expert: numbers read and held-out energy, by form and rank.

    Without a bias, rank 0 is no sketch.
    """
    num_ranks, hidden = layer.down.shape[2] + 1, layer.down.shape[-1]
    sizes = [hidden * (2 * rank + form) for form in (0, 1) for rank in range(num_ranks)]
    return [
        [(size, gain) for size, gain in zip(sizes, each.flatten().tolist(), strict=True)]
        for each in layer.explained
    ]
