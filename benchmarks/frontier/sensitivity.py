"""What a model's own runs on training problems tell: layers' sensitivity, experts' similarity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from experts import Experts
from forced import Forced
from torch import Tensor
from torch.nn import functional as F

SHARES = (0.3, 0.45)  # of the natural union, at which one layer alone is cut
LEAST_KL = 1e-7  # nats; below it a layer's KL is rounding
SPREAD = 0.2  # a layer's share of the natural union differs from the mean by at most this
NO_CAP = 2**30
TOKENS = 2000  # that every expert computes


def layer_offsets(
    kl_of: Callable[[tuple[int, ...]], float], natural: float, num_layers: int
) -> list[float]:
    """By how much each layer's share of the natural union should differ from the mean share.

    With one layer cut at share s its KL is near exp(a_l - b * s), one slope b for all layers. The
    sum over layers is least, at a given mean share, where s_l = mean + (a_l - mean a) / b.

    Args:
        kl_of: mean KL of these caps by layer, in nats.
        natural: the natural union, in experts.
    """
    logs = torch.tensor(
        [
            [
                math.log(max(kl_of(one_cut(layer, natural * s, num_layers)), LEAST_KL))
                for s in SHARES
            ]
            for layer in range(num_layers)
        ],
        dtype=torch.float64,
    )
    shares = torch.tensor(SHARES, dtype=torch.float64)
    centred = shares - shares.mean()
    slope = -float((logs.mean(dim=0) * centred).sum() / (centred**2).sum())
    level = logs.mean(dim=1)
    offsets = ((level - level.mean()) / slope).clamp(-SPREAD, SPREAD)
    return [round(float(each), 4) for each in offsets - offsets.mean()]


def one_cut(layer: int, budget: float, num_layers: int) -> tuple[int, ...]:
    """Caps that bind in one layer alone."""
    return tuple(max(1, round(budget)) if each == layer else NO_CAP for each in range(num_layers))


def layer_budgets(offsets: Sequence[float], share: float, natural: float) -> tuple[int, ...]:
    """Caps at a mean share of the natural union, at least 1."""
    return tuple(max(1, round((share + offset) * natural)) for offset in offsets)


@torch.inference_mode()
def similarities(forced: Forced) -> list[Tensor]:
    """SERE's: per layer float32 [E, E], how alike two experts' outputs are on the same tokens.

    The Frobenius inner product of their output matrices over the product of the norms.
    """
    seen: dict[Experts, Tensor] = {}
    layers = forced.model.moe_layers()
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: seen.update({layer: given[0]}))
        for layer in layers
    ]
    forced.run(None)
    for hook in hooks:
        hook.remove()
    result = []
    for layer in layers:
        x = seen[layer][:TOKENS]
        outputs = []
        for gate_up, down in zip(layer.gate_up, layer.down, strict=True):
            gate, up = F.linear(x, gate_up).chunk(2, dim=1)
            outputs.append(F.normalize(F.linear(F.silu(gate) * up, down).flatten(), dim=0))
        flat = torch.stack(outputs)
        result.append(flat @ flat.t())
    return result
