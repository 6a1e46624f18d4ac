"""Sensitivity of layers and contributions of experts, measured on training problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.frontier.forced import Forced
from lynx_controller.decide.budget import offsets_at_least_kl
from lynx_sglang.calibrate.expert_outputs import ExpertOutputs
from models.experts import Experts

SHARES = (0.3, 0.45)  # of the uncapped T, at which one layer alone is cut
LEAST_KL = 1e-7  # nats; below it a layer's KL is rounding
NO_CAP = 2**30
TOKENS = 2000  # that every expert computes


def layer_offsets(
    kl_of: Callable[[tuple[int, ...]], float], uncapped: float, num_layers: int
) -> list[float]:
    """By how much each layer's share of the uncapped T should differ from the mean share.

    As `lynx_controller.decide.budget` does it, with one slope for all layers, read off cuts of
    one alone.

    Args:
        kl_of: mean KL of these caps by layer, in nats.
        uncapped: the uncapped T, in experts.
    """
    logs = torch.tensor(
        [
            [
                math.log(max(kl_of(one_cut(layer, uncapped * s, num_layers)), LEAST_KL))
                for s in SHARES
            ]
            for layer in range(num_layers)
        ],
        dtype=torch.float64,
    )
    shares = torch.tensor(SHARES, dtype=torch.float64)
    centred = shares - shares.mean()
    slope = -float((logs.mean(dim=0) * centred).sum() / (centred**2).sum())
    return offsets_at_least_kl(logs.mean(dim=1).tolist(), slope)


def one_cut(layer: int, budget: float, num_layers: int) -> tuple[int, ...]:
    """Caps that bind in one layer alone."""
    return tuple(max(1, round(budget)) if each == layer else NO_CAP for each in range(num_layers))


def layer_budgets(offsets: Sequence[float], share: float, uncapped: float) -> tuple[int, ...]:
    """Caps at a mean share of the uncapped T, at least 1."""
    return tuple(max(1, round((share + offset) * uncapped)) for offset in offsets)


@torch.inference_mode()
def similarities(forced: Forced) -> list[Tensor]:
    """SERE's: per layer float32 [E, E], how alike two experts' outputs are on the same tokens.

    The Frobenius inner product of their output matrices over the product of the norms.
    """
    result = []
    for layer, seen in inputs_of(forced).items():
        x = seen[:TOKENS]
        outputs = [output_of(layer, expert, x).flatten() for expert in range(len(layer.down))]
        flat = F.normalize(torch.stack(outputs), dim=1)
        result.append(flat @ flat.t())
    return result


@torch.inference_mode()
def contributions(forced: Forced) -> list[Tensor]:
    """The usual size of each expert's output, as `calibrate` has it: per layer float32 [E]."""
    outputs = ExpertOutputs()
    for index, (layer, x) in enumerate(inputs_of(forced).items()):
        _, ids, weights = Experts.choose(layer, layer.router(x))
        for expert in range(len(layer.down)):
            rows, slots = (ids == expert).nonzero(as_tuple=True)
            found = output_of(layer, expert, x[rows])
            outputs.note(index, len(layer.down), ids[rows, slots], weights[rows, slots], found)
    return [outputs.contributions(layer) for layer in outputs.layer_ids]


def inputs_of(forced: Forced) -> dict[Experts, Tensor]:
    """The inputs of each MoE layer from all decode tokens, [N, H], at full quality."""
    seen: dict[Experts, Tensor] = {}
    layers = forced.model.moe_layers()
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: seen.update({layer: given[0]}))
        for layer in layers
    ]
    forced.run(None)
    for hook in hooks:
        hook.remove()
    return seen


def output_of(layer: Experts, expert: int, x: Tensor) -> Tensor:
    """An expert's output for tokens [N, H], before any weight."""
    gate, up = F.linear(x, layer.gate_up[expert]).chunk(2, dim=1)
    return F.linear(F.silu(gate) * up, layer.down[expert])
