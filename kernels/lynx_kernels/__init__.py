"""Expert selection and fused MoE for Mixture-of-Experts decoding. Contract: kernels/README.md."""

from lynx_kernels.fused_moe import fused_moe
from lynx_kernels.fused_moe_cpu import CpuExperts
from lynx_kernels.fused_moe_reference import fused_moe_reference
from lynx_kernels.policies import POLICIES, Policy
from lynx_kernels.select import select, warm_up
from lynx_kernels.select_reference import select_reference
from lynx_kernels.selection import RowClass, Selection

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
