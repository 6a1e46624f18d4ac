"""The nouns of selection: the class of a row, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from lynx_kernels.schedule import Schedule


class RowClass(IntEnum):
    """Freedom of selection over a row; the caller sets one uint8 per row."""

    PAD = 0  # demands nothing, comes out as -1
    EXACT = 1  # comes out bit for bit as it went in
    FLEXIBLE = 2  # may trade experts


@dataclass(frozen=True, slots=True)
class Selection:
    """One layer-step's routing after selection. Tensors may alias the inputs of `select`."""

    topk_ids: Tensor  # int [M, K], dtype as given; -1: empty slot
    topk_weights: Tensor  # float32 [M, K]
    active: Tensor  # bool [E], True where some row uses the expert
    num_active: Tensor  # int32 [], T
    retained_mass: Tensor  # float32 [M], own mass kept / own top-k mass
    schedule: Schedule | None = None  # for `fused_moe`; None on a CPU, which needs none
