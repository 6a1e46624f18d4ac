"""Experts of a layer that the GPU programs run, and their float64 reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu import IS_DRY_RUN
from benchmarks.gpu.harness import DEVICE, DTYPE
from benchmarks.gpu.shapes import Shape
from lynx_kernels.device import arch_of
from lynx_kernels.fused_moe import ACTIVATIONS, SCALE_BLOCK, Workspace, fused_moe_triton, tuning
from lynx_kernels.schedule import Schedule


@dataclass(frozen=True)
class Weights:
    """One layer's experts, random."""

    shape: Shape
    w13: Tensor
    w2: Tensor
    w13_scale: Tensor | None  # of fp8 weights
    w2_scale: Tensor | None
    w13_bias: Tensor | None
    w2_bias: Tensor | None

    @classmethod
    def random(cls, shape: Shape, seed: int) -> Weights:
        rng = torch.Generator(DEVICE).manual_seed(seed)
        experts, hidden, inner = shape.num_experts, shape.hidden_size, shape.intermediate_size

        def normal(*sizes: int) -> Tensor:
            return torch.empty(sizes, dtype=DTYPE, device=DEVICE).normal_(generator=rng)

        def matrices(num_rows: int, num_columns: int) -> tuple[Tensor, Tensor | None]:
            """Outputs keep the size of inputs; fp8 values use most of their range."""
            values = normal(experts, num_rows, num_columns)
            if not shape.scaled:
                return values.mul_(num_columns**-0.5), None
            blocks = [-(-size // SCALE_BLOCK) for size in (num_rows, num_columns)]
            sizes = {"block": blocks, "row": [num_rows], "expert": []}[shape.scaled]
            scale = torch.empty(experts, *sizes, device=DEVICE).uniform_(0.5, 1.5, generator=rng)
            return values.mul_(64.0).to(torch.float8_e4m3fn), scale / (64.0 * num_columns**0.5)

        w13, w13_scale = matrices(2 * inner, hidden)
        w2, w2_scale = matrices(hidden, inner)
        return cls(
            shape=shape,
            w13=w13,
            w2=w2,
            w13_scale=w13_scale,
            w2_scale=w2_scale,
            w13_bias=normal(experts, 2 * inner) if shape.has_bias else None,
            w2_bias=normal(experts, hidden) if shape.has_bias else None,
        )

    @property
    def can_use_tma(self) -> bool:
        return self.shape.fits_tma and (IS_DRY_RUN or arch_of(DEVICE) >= 90)

    def workspace(self, max_rows: int) -> Workspace:
        return Workspace.allocate(
            self.w13, self.w2, max_rows=max_rows, top_k=self.shape.top_k, dtype=DTYPE
        )

    def run(
        self, hidden: Tensor, schedule: Schedule, workspace: Workspace, out: Tensor | None = None
    ) -> Tensor:
        return fused_moe_triton(
            hidden,
            self.w13,
            self.w2,
            schedule,
            workspace=workspace,
            activation=self.shape.activation,
            is_interleaved=self.shape.is_interleaved,
            w13_scale=self.w13_scale,
            w2_scale=self.w2_scale,
            w13_bias=self.w13_bias,
            w2_bias=self.w2_bias,
            out=out,
        )

    def run_by_tma(
        self, hidden: Tensor, schedule: Schedule, workspace: Workspace, out: Tensor
    ) -> Tensor:
        """`run` with the tiles of its rule, their weights copied by the accelerator."""
        slot = tuning.size_class_of(hidden.shape[0])
        tiles = replace(tuning.tiles_for(workspace.layer, slot), is_tma=True)
        with mock.patch.dict(tuning.TABLE, {(workspace.layer, slot): tiles}):
            return self.run(hidden, schedule, workspace, out)

    def reference(self, hidden: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """The layer in float64, expert by expert."""
        out = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
        for expert in topk_ids[topk_ids >= 0].unique().tolist():
            row, slot = torch.where(topk_ids == expert)
            gate_up = hidden[row].double() @ wide(self.w13, self.w13_scale, expert).T
            if self.w13_bias is not None:
                gate_up += self.w13_bias[expert].double()
            if self.shape.is_interleaved:
                gate_up = torch.cat([gate_up[:, ::2], gate_up[:, 1::2]], dim=1)
            y = ACTIVATIONS[self.shape.activation](gate_up)
            y = y @ wide(self.w2, self.w2_scale, expert).T
            if self.w2_bias is not None:
                y += self.w2_bias[expert].double()
            out.index_add_(0, row, y * topk_weights[row, slot].double()[:, None])
        return out


def wide(weights: Tensor, scale: Tensor | None, expert: int) -> Tensor:
    """One expert's matrix in float64 [N, D]."""
    values = weights[expert].double()
    if scale is None:
        return values
    factors = scale[expert].double()
    if factors.ndim == 2:
        factors = factors.repeat_interleave(SCALE_BLOCK, 0).repeat_interleave(SCALE_BLOCK, 1)
        return values * factors[: values.shape[0], : values.shape[1]]
    return values * factors.reshape(-1, 1)
