"""The fused MoE: every active expert runs on its rows, and each row sums its experts by weight.

`fused_moe` is the public function and `fused_moe_reference` its definition. A CPU holds a layer's
weights as `CpuExperts`; a server that captures graphs holds a `Workspace` and calls
`fused_moe_triton`, which imports Triton when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lynx_kernels.fused_moe.activation import ACTIVATIONS, SWIGLU_ALPHA, SWIGLU_LIMIT
from lynx_kernels.fused_moe.cpu import CpuExperts
from lynx_kernels.fused_moe.operator import fused_moe
from lynx_kernels.fused_moe.reference import SCALE_BLOCK, fused_moe_reference
from lynx_kernels.fused_moe.workspace import Workspace

if TYPE_CHECKING:
    from lynx_kernels.fused_moe.triton_form import fused_moe_triton

__all__ = [
    "ACTIVATIONS",
    "SCALE_BLOCK",
    "SWIGLU_ALPHA",
    "SWIGLU_LIMIT",
    "CpuExperts",
    "Workspace",
    "fused_moe",
    "fused_moe_reference",
    "fused_moe_triton",
]


def __getattr__(name: str) -> Any:
    if name != "fused_moe_triton":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.triton_form"), name)
