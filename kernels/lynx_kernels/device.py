"""Properties of the device that kernels run on; anything but CUDA is an interpreted CPU."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

MIN_PDL_ARCH = 90
INTERPRETED_SMS = 3  # programs are walked one by one: few, but more than one


@cache
def arch_of(device: torch.device) -> int:
    """10 * major + minor of the compute capability; 0 where it has none."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def sm_count(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def has_pdl(arch: int) -> bool:
    """Programmatic dependent launch: a kernel starts early and waits inside."""
    return arch >= MIN_PDL_ARCH


@cache
def missing_for_triton() -> str | None:
    """The reason that CUDA devices of this process cannot run Triton kernels; None if they can."""
    if torch.version.hip is not None:
        return "the Triton kernels are for NVIDIA GPUs, this torch is built for ROCm"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None
