"""Expert selection and fused MoE for decoding with Mixture-of-Experts models.

A room for each operator, with its public function, its reference, its CPU form and its Triton form:
`select` chooses the experts that a batch may use, `schedule` is the work list that a GPU runs,
`fused_moe` runs the experts on it, `sketch` stands in for lost experts. The contract and the maths
are in kernels/README.md.
"""

from lynx_kernels.fused_moe import CpuExperts, fused_moe, fused_moe_reference
from lynx_kernels.select import (
    POLICIES,
    Policy,
    RowClass,
    Selection,
    policies_for_triton,
    select,
    select_reference,
    warm_up,
)

__all__ = [
    "POLICIES",
    "CpuExperts",
    "Policy",
    "RowClass",
    "Selection",
    "fused_moe",
    "fused_moe_reference",
    "policies_for_triton",
    "select",
    "select_reference",
    "warm_up",
]
