"""The factors of one layer's sketches, ragged: each expert has its own rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sketch:
    """One expert's stand-in, x -> up @ (down @ x) + bias, for x [H].

    down: [R, H]; up: [H, R]; bias: [H], None for none. Rank 0 without a bias gives zeros.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None = None

    @property
    def num_values(self) -> int:
        """Numbers that a lost slot reads."""
        return self.down.numel() + self.up.numel() + (0 if self.bias is None else len(self.bias))


@dataclass(frozen=True, slots=True)
class LayerSketches:
    """Sketches of a layer's E experts, end to end.

    down, up: [R, H], R the sum of ranks; starts: int64 [E + 1], bounds of each expert's ranks;
    bias: [E, H], zeros for an expert without one; sizes: int64 [E], numbers that each one reads.
    """

    down: Tensor
    up: Tensor
    starts: Tensor
    bias: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, sketches: Sequence[Sketch]) -> LayerSketches:
        """Put sketches together, one for each expert.

        Raises:
            ValueError: no sketches.
        """
        if not sketches:
            raise ValueError("sketches: expected one for each expert, got none")
        starts = [0]
        for each in sketches:
            starts.append(starts[-1] + len(each.down))
        zeros = torch.zeros(sketches[0].down.shape[1], dtype=sketches[0].down.dtype)
        return cls(
            torch.cat([each.down for each in sketches]),
            torch.cat([each.up.t() for each in sketches]),
            torch.tensor(starts),
            torch.stack([zeros if each.bias is None else each.bias for each in sketches]),
            torch.tensor([each.num_values for each in sketches]),
        )

    @property
    def num_experts(self) -> int:
        return len(self.bias)

    @property
    def hidden_size(self) -> int:
        return self.bias.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> LayerSketches:
        """The factors on a device and in a dtype; bounds and sizes stay on the CPU."""
        down, up, bias = (each.to(device, dtype) for each in (self.down, self.up, self.bias))
        return LayerSketches(down, up, self.starts, bias, self.sizes)

    def of_expert(self, expert: int, x: Tensor) -> Tensor:
        """An expert's sketch of x [N, H]: [N, H]."""
        ranks = slice(int(self.starts[expert]), int(self.starts[expert + 1]))
        return torch.addmm(self.bias[expert], x @ self.down[ranks].t(), self.up[ranks])
