"""Gated activations: the first half of the columns gates the second."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def gelu_and_mul(gate_up: Tensor) -> Tensor:
    """The tanh form, as SGLang's CPU path computes "gelu"."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh").mul_(up)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu_and_mul, "gelu": gelu_and_mul}
