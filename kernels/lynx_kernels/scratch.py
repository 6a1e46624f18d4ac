"""The one allocator of uninitialised memory, so that tests can poison it."""

from __future__ import annotations

import torch
from torch import Tensor


def empty(num_rows: int, num_columns: int, like: Tensor) -> Tensor:
    return torch.empty((num_rows, num_columns), dtype=like.dtype, device=like.device)
