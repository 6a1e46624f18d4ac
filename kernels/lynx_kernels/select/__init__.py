"""Selection: which experts the rows of a batch use, under a cap on their number.

`select` is the public function and `select_reference` its definition. `Policy` says who competes
and by which importance; `POLICIES` holds the named ones. A CPU runs compiled loops (`cpu.py`), a
CUDA device one Triton launch (`triton_form.py`), anything else torch operations (`torch_form.py`).
`select_triton`, `SelectBuffers`, `LayerBuffers` and `build_schedule` are for callers that capture
graphs: they import Triton when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lynx_kernels.select.limits import MAX_FUSED_ROWS, SCORINGS
from lynx_kernels.select.operator import find_policy, select, warm_up
from lynx_kernels.select.policies import POLICIES, Policy, policies_for_triton
from lynx_kernels.select.reference import select_reference
from lynx_kernels.select.selection import RowClass, Selection

if TYPE_CHECKING:
    from lynx_kernels.select.triton_buffers import LayerBuffers, SelectBuffers
    from lynx_kernels.select.triton_form import select_triton
    from lynx_kernels.select.triton_schedule import build_schedule

NEED_TRITON = {
    "LayerBuffers": "triton_buffers",
    "SelectBuffers": "triton_buffers",
    "build_schedule": "triton_schedule",
    "select_triton": "triton_form",
}

__all__ = [
    "MAX_FUSED_ROWS",
    "POLICIES",
    "SCORINGS",
    "LayerBuffers",
    "Policy",
    "RowClass",
    "SelectBuffers",
    "Selection",
    "build_schedule",
    "find_policy",
    "policies_for_triton",
    "select",
    "select_reference",
    "select_triton",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    if name not in NEED_TRITON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{NEED_TRITON[name]}"), name)
