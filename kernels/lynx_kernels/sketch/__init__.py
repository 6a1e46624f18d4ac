"""Sketches: a low-rank affine map stands in for each expert that a row lost.

`LayerSketches` holds a layer's factors, `add_sketches` adds what they give to the layer's output,
and `covered_mass` counts the routing mass that they stand in for. Selection without a refill
(`Policy.is_refilling` False) leaves the slots empty that they fill.
"""

from lynx_kernels.sketch.factors import LayerSketches, Sketch
from lynx_kernels.sketch.operator import add_sketches, covered_mass, lost_slots, warm_up
from lynx_kernels.sketch.reference import add_sketches_reference

__all__ = [
    "LayerSketches",
    "Sketch",
    "add_sketches",
    "add_sketches_reference",
    "covered_mass",
    "lost_slots",
    "warm_up",
]
