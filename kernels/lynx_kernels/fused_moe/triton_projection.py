"""The weights of one of a layer's two products on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lynx_kernels.fused_moe.reference import SCALE_BLOCK
from lynx_kernels.fused_moe.tuning import GemmTiles


@dataclass(frozen=True, slots=True)
class Projection:
    name: str
    weight: Tensor  # [E, N, D]
    scale: Tensor | None  # float32 [E, N / 128, D / 128], [E, N] or [E]
    bias: Tensor | None  # [E, N]

    @property
    def scale_block(self) -> tuple[int, int]:
        """Rows and columns of weights that share a scale."""
        if self.scale is None or self.scale.ndim == 3:
            return SCALE_BLOCK, SCALE_BLOCK
        num_rows, num_columns = self.weight.shape[1:]
        return (1 if self.scale.ndim == 2 else num_rows), num_columns

    def descriptor(self, tiles: GemmTiles) -> TensorDescriptor:
        """By which the tensor memory accelerator copies the weights' tiles: a kernel parameter, so
        that a captured graph holds it.
        """
        rows = self.weight.view(-1, self.weight.shape[2])
        return TensorDescriptor.from_tensor(rows, [tiles.block_rows, tiles.block_depth])
