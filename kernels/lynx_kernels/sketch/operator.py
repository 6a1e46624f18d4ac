"""The sketches of lost experts: the public `add_sketches`.

M rows, K slots of a row, E experts, H hidden.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from lynx_kernels.sketch.factors import LayerSketches, Sketch

HAS_NUMBA = importlib.util.find_spec("numba") is not None


def add_sketches(
    out: Tensor, x: Tensor, lost_ids: Tensor, weights: Tensor, sketches: LayerSketches
) -> Tensor:
    """Add to a layer's output what the sketches of its lost experts give; in place.

        out[m] += sum over lost slots k of weights[m, k] * (up_e @ (down_e @ x[m]) + bias_e)

    An expert's factors are read once, for all rows that lost it. Experts are added in rising order,
    so the same input gives the same bits. Rows that lose nothing keep theirs.

    Args:
        out: float [M, H], the output of the experts that ran; written and returned.
        x: float [M, H], the layer's input.
        lost_ids: int32 or int64 [M, K], the lost experts; -1 for a slot that is not lost.
        weights: float32 [M, K], the router's, at the scale of `out`; read in lost slots alone.
        sketches: on the device of `out`.

    On a CPU, contiguous float32 tensors take a compiled loop. Others, and CUDA tensors, take torch
    operations, which ask the device for the experts: not for captured graphs.

    Raises:
        ValueError: shapes that do not fit.
        IndexError: on a CPU, an expert that has no sketch.
    """
    check(out, x, lost_ids, weights, sketches)
    given = (out, x, weights, sketches.down)
    is_plain = all(each.dtype is torch.float32 and each.is_contiguous() for each in given)
    if HAS_NUMBA and is_plain and out.device.type == "cpu" and lost_ids.is_contiguous():
        from lynx_kernels.sketch.cpu import add_sketches_cpu

        add_sketches_cpu(out, x, lost_ids, weights, sketches)
        return out
    rows, slots = (lost_ids >= 0).nonzero(as_tuple=True)
    lost = lost_ids[rows, slots]
    for expert in lost.unique().tolist():
        chosen = lost == expert
        mine = rows[chosen]
        scale = weights[mine, slots[chosen]].unsqueeze(1)
        stand_in = scale * sketches.of_expert(expert, x[mine].to(sketches.down.dtype))
        out.index_add_(0, mine, stand_in.to(out.dtype))
    return out


def warm_up() -> None:
    """Compile the CPU path for int32 and int64 ids, so that no step waits for it."""
    zeros = torch.zeros(1, 1)
    sketches = LayerSketches.of([Sketch(zeros, zeros)])
    for dtype in (torch.int32, torch.int64):
        lost = torch.zeros(1, 1, dtype=dtype)
        add_sketches(zeros.clone(), zeros.clone(), lost, zeros.clone(), sketches)


def lost_slots(topk_ids: Tensor, chosen_ids: Tensor) -> Tensor:
    """Ids [M, K] of the slots that selection without a refill left empty; -1 elsewhere.

    Args:
        topk_ids: the router's, [M, K].
        chosen_ids: of `select` with a policy whose `is_refilling` is False, [M, K].
    """
    return topk_ids.masked_fill(chosen_ids >= 0, -1)


def covered_mass(
    retained_mass: Tensor, topk_weights: Tensor, lost_ids: Tensor, cover: Tensor
) -> Tensor:
    """Retained mass plus the mass of lost slots that their sketches stand in for: float32 [M].

        covered[m] = retained[m] + sum over lost slots k of p[m, k] * cover[e]
        p[m, k]    = topk_weights[m, k] / row total

    Args:
        retained_mass: float32 [M], of `select`.
        topk_weights: float32 [M, K], the router's; slots that hold no routed expert weigh 0.
        lost_ids: [M, K], of `lost_slots`.
        cover: float32 [E + 1] in [0, 1], the part of an expert's output that its sketch gives; the
            last entry is 0, for slots that are not lost.
    """
    stand_ins = (cover[lost_ids.long()] * topk_weights).sum(dim=1)
    return retained_mass + stand_ins / topk_weights.sum(dim=1).clamp(min=1e-30)


def check(
    out: Tensor, x: Tensor, lost_ids: Tensor, weights: Tensor, sketches: LayerSketches
) -> None:
    """Raise a ValueError for what `add_sketches` cannot take; no tensor of a device is read."""
    if out.shape != x.shape or x.shape[1:] != sketches.bias.shape[1:]:
        raise ValueError(
            f"out, x: expected [M, {sketches.hidden_size}], got {[*out.shape]} and {[*x.shape]}"
        )
    if lost_ids.shape != weights.shape or len(lost_ids) != len(x):
        raise ValueError(
            f"lost_ids, weights: expected [{len(x)}, K], "
            f"got {[*lost_ids.shape]} and {[*weights.shape]}"
        )
