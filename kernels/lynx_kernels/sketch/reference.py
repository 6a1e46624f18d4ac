"""The sketches of lost experts, slot by slot: the definition of `add_sketches`."""

from __future__ import annotations

from torch import Tensor

from lynx_kernels.sketch.factors import LayerSketches


def add_sketches_reference(
    out: Tensor, x: Tensor, lost_ids: Tensor, weights: Tensor, sketches: LayerSketches
) -> Tensor:
    """`add_sketches` in float64, into a new tensor."""
    result = out.double().clone()
    starts = sketches.starts.tolist()
    for row, experts in enumerate(lost_ids.tolist()):
        for slot, expert in enumerate(experts):
            if expert >= 0:
                ranks = slice(starts[expert], starts[expert + 1])
                inner = sketches.down[ranks].double() @ x[row].double()
                stand_in = sketches.up[ranks].double().t() @ inner + sketches.bias[expert].double()
                result[row] += weights[row, slot].double() * stand_in
    return result.to(out.dtype)
