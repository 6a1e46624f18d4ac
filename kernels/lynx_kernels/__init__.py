"""Expert selection and fused MoE for Mixture-of-Experts decoding. Contract: kernels/README.md."""

from lynx_kernels.fused_moe.cpu import CpuExperts
from lynx_kernels.fused_moe.operator import fused_moe
from lynx_kernels.fused_moe.reference import fused_moe_reference
from lynx_kernels.select.operator import select, warm_up
from lynx_kernels.select.policies import POLICIES, Policy
from lynx_kernels.select.reference import select_reference
from lynx_kernels.select.selection import RowClass, Selection

__all__ = [
    "POLICIES",
    "CpuExperts",
    "Policy",
    "RowClass",
    "Selection",
    "fused_moe",
    "fused_moe_reference",
    "select",
    "select_reference",
    "warm_up",
]
