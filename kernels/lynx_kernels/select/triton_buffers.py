"""Outputs and scratch of selection on a GPU, at sizes and addresses fixed before a capture."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import triton
from torch import Tensor

from lynx_kernels import scratch
from lynx_kernels.schedule import Schedule
from lynx_kernels.schedule.triton_lists import HEAD
from lynx_kernels.select.limits import MAX_EXPERTS, MAX_FUSED_ROWS, MAX_TOP_K
from lynx_kernels.select.policies import MAX_ROWS
from lynx_kernels.select.selection import Selection
from lynx_kernels.select.triton_kernels import COUNTERS, HEADER, block_of, num_ids

ALIGNED_WORDS = 4  # 16 bytes: a kernel is compiled for pointers of that alignment
MIN_ROWS, MAX_WORD_ROWS = 8, 64  # a program's: one per warp, one per bit of a word


@dataclass(frozen=True, slots=True)
class SelectTiles:
    """Shape of the launches for a number of rows."""

    rows: int  # that a program decides for
    demand_rows: int  # that a program counts the demand of at a time
    num_programs: int
    num_warps: int


def tiles_for(num_rows: int, num_experts: int, top_k: int) -> SelectTiles:
    """Not measured yet: a program's scores are 16 to 32 registers of each thread."""
    block_e = block_of(num_experts)
    most = min(MAX_WORD_ROWS, (8192 if num_rows <= MAX_FUSED_ROWS else 16384) // block_e)
    rows = min(most, max(MIN_ROWS, triton.next_power_of_2(num_rows)))
    return SelectTiles(
        rows=rows,
        demand_rows=min(triton.next_power_of_2(num_rows), 1024 // triton.next_power_of_2(top_k)),
        num_programs=max(1, triton.cdiv(num_rows, rows)),
        num_warps=8 if rows * block_e <= 4096 else 16,
    )


@dataclass(frozen=True, slots=True)
class SelectBuffers:
    """Outputs and scratch of `select_triton`, at fixed addresses: allocate once, launch anywhere.

    Layers that run in turn may share one, as long as each one's results are read before the next.
    `numbers` holds, in 32-bit words: T, the schedule's num_active, 2 unused; the schedule's
    experts, counts and offsets; retained_mass; the schedule's tokens, weights and slots.
    """

    max_rows: int
    top_k: int
    num_experts: int
    num_scheduled: int  # experts in the schedule, 0 for none
    first_expert: int  # id of the schedule's first
    ids: Tensor  # int32 or int64 [max_rows, K]
    weights: Tensor  # float32 [max_rows, K]
    active: Tensor  # uint8 [1, E]
    numbers: Tensor  # int32 [1, n]
    scratch: Tensor  # int64 [1, n]; its first entry is zero between launches
    _views: dict[int, Selection] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def allocate(
        cls,
        *,
        max_rows: int,
        top_k: int,
        num_experts: int,
        num_scheduled: int = 0,
        first_expert: int = 0,
        ids_dtype: torch.dtype = torch.int32,
        device: torch.device | str,
    ) -> SelectBuffers:
        """For batches of up to max_rows rows.

        A schedule over num_scheduled experts, those of w13, comes with the selection: the routed
        ones and any fused shared ones, or the local range from first_expert on.
        """
        check_sizes(max_rows, top_k, num_experts, first_expert + max(num_scheduled, 1))

        def new(num_rows: int, num_columns: int, dtype: torch.dtype) -> Tensor:
            like = torch.empty(0, dtype=dtype, device=device)
            return scratch.empty(num_rows, num_columns, like=like)

        num_numbers = HEAD.value + 3 * num_scheduled + max_rows + 3 * max_rows * top_k
        num_scratch = scratch_size(max_rows, top_k, num_experts, first_expert, num_scheduled)
        buffers = cls(
            max_rows=max_rows,
            top_k=top_k,
            num_experts=num_experts,
            num_scheduled=num_scheduled,
            first_expert=first_expert,
            ids=new(max_rows, top_k, ids_dtype),
            weights=new(max_rows, top_k, torch.float32),
            active=new(1, num_experts, torch.uint8),
            numbers=new(1, num_numbers, torch.int32),
            scratch=new(1, num_scratch, torch.int64),
        )
        buffers.scratch[0, 0].zero_()
        return buffers

    def per_layer(self, num_layers: int) -> LayerBuffers:
        """Buffers for layers that run in turn and whose T and retained mass outlive them."""
        num_numbers = self.numbers.shape[1]
        rows = scratch.empty(
            num_layers, -(-num_numbers // ALIGNED_WORDS) * ALIGNED_WORDS, self.numbers
        )
        masses = HEAD.value + 3 * self.num_scheduled
        return LayerBuffers(
            layers=[
                replace(self, numbers=rows[layer : layer + 1, :num_numbers], _views={})
                for layer in range(num_layers)
            ],
            num_active=rows[:, 0],
            retained_mass=rows[:, masses : masses + self.max_rows].view(torch.float32),
        )

    def view(self, num_rows: int) -> Selection:
        """The results of a batch of num_rows rows."""
        if num_rows not in self._views:
            self._views[num_rows] = self._new_view(num_rows)
        return self._views[num_rows]

    def _new_view(self, num_rows: int) -> Selection:
        num_slots = self.max_rows * self.top_k
        sizes = [1, 1, HEAD.value - 2, *3 * [self.num_scheduled], self.max_rows, *3 * [num_slots]]
        num_active, num_scheduled, _, *lists, retained, tokens, weights, slots = torch.split(
            self.numbers[0], sizes
        )
        schedule = Schedule(
            num_active=num_scheduled,
            experts=lists[0],
            counts=lists[1],
            offsets=lists[2],
            tokens=tokens,
            weights=weights.view(torch.float32),
            slots=slots.view(self.max_rows, self.top_k)[:num_rows],
        )
        return Selection(
            topk_ids=self.ids[:num_rows],
            topk_weights=self.weights[:num_rows],
            active=self.active[0].view(torch.bool),
            num_active=num_active[0],
            retained_mass=retained.view(torch.float32)[:num_rows],
            schedule=schedule if self.num_scheduled else None,
        )


@dataclass(frozen=True, slots=True)
class LayerBuffers:
    """One set per layer; all but `numbers` is shared, and `numbers` are rows of one tensor."""

    layers: list[SelectBuffers]
    num_active: Tensor  # int32 [L], a view of every layer's T
    retained_mass: Tensor  # float32 [L, max_rows], a view


def scratch_size(
    max_rows: int, top_k: int, num_experts: int, first_expert: int, num_scheduled: int
) -> int:
    """int64 entries for any batch of up to max_rows rows."""
    num_counters = COUNTERS.value * block_of(num_experts)
    num_words = block_of(num_ids(num_experts, first_expert, num_scheduled))
    fused = tiles_for(min(max_rows, MAX_FUSED_ROWS), num_experts, top_k).num_programs
    in_three = tiles_for(max(max_rows, MAX_FUSED_ROWS + 1), num_experts, top_k).num_programs
    return int(
        HEADER.value
        + max(fused * (num_counters + 2 * num_words), num_counters + in_three * num_words)
    )


def check_sizes(max_rows: int, top_k: int, num_experts: int, num_all: int) -> None:
    for name, size, most in (
        ("max_rows", max_rows, MAX_ROWS),
        ("top_k", top_k, MAX_TOP_K),
        ("num_experts", num_experts, MAX_EXPERTS),
        ("first_expert + num_scheduled", num_all, 2 * MAX_EXPERTS),
    ):
        if not 1 <= size <= most:
            raise ValueError(f"{name}: expected 1 to {most}, got {size}")
