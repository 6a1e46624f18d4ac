"""Results and scratch of selection on a GPU, at sizes and addresses fixed before a capture."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lynx_kernels import scratch
from lynx_kernels.schedule import Schedule
from lynx_kernels.select.layout import Layout
from lynx_kernels.select.selection import Selection

ALIGNED_WORDS = 4  # 16 bytes: a kernel is compiled for pointers of that alignment


@dataclass(frozen=True, slots=True)
class SelectBuffers:
    """Results and scratch of `select_triton`: allocate once, launch anywhere.

    Layers that run in turn may share one, if the results of each are read before the next runs.
    """

    layout: Layout
    ids: Tensor  # int32 or int64 [max_rows, K]
    weights: Tensor  # float32 [max_rows, K]
    active: Tensor  # uint8 [1, E]
    numbers: Tensor  # int32 [1, layout.num_numbers]
    scratch: Tensor  # int64 [1, layout.num_scratch]
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

        Raises:
            ValueError: a size that no kernel serves, by name.
        """
        layout = Layout(max_rows, top_k, num_experts, first_expert, num_scheduled)

        def new(num_rows: int, num_columns: int, dtype: torch.dtype) -> Tensor:
            like = torch.empty(0, dtype=dtype, device=device)
            return scratch.empty(num_rows, num_columns, like=like)

        buffers = cls(
            layout=layout,
            ids=new(max_rows, top_k, ids_dtype),
            weights=new(max_rows, top_k, torch.float32),
            active=new(1, num_experts, torch.uint8),
            numbers=new(1, layout.num_numbers, torch.int32),
            scratch=new(1, layout.num_scratch, torch.int64),
        )
        buffers.scratch[0, 0].zero_()
        buffers.scratch[0, layout.shared_counters :].zero_()
        return buffers

    def view(self, num_rows: int) -> Selection:
        """The results of a batch of num_rows rows."""
        if num_rows not in self._views:
            self._views[num_rows] = self._new_view(num_rows)
        return self._views[num_rows]

    def _new_view(self, num_rows: int) -> Selection:
        layout, numbers = self.layout, self.numbers[0]
        retained = numbers[layout.retained_mass : layout.retained_mass + num_rows]
        return Selection(
            topk_ids=self.ids[:num_rows],
            topk_weights=self.weights[:num_rows],
            active=self.active[0].view(torch.bool),
            num_active=numbers[0],
            retained_mass=retained.view(torch.float32),
            schedule=self._schedule(num_rows) if layout.num_scheduled else None,
        )

    def _schedule(self, num_rows: int) -> Schedule:
        layout = self.layout

        def part(start: int, size: int) -> Tensor:
            return self.numbers[0, start : start + size]

        slots = part(layout.slots, num_rows * layout.top_k)
        return Schedule(
            num_active=part(1, 1),
            experts=part(layout.experts, layout.num_scheduled),
            counts=part(layout.counts, layout.num_scheduled),
            offsets=part(layout.offsets, layout.num_scheduled),
            tokens=part(layout.tokens, layout.num_slots),
            weights=part(layout.weights, layout.num_slots).view(torch.float32),
            slots=slots.view(num_rows, layout.top_k),
        )


@dataclass(frozen=True, slots=True)
class LayerBuffers:
    """Buffers for layers that run in turn and whose T and retained mass outlive them.

    Layers share all but `numbers`, which are rows of one tensor. Buffers of several sizes share
    these, too: T and retained mass of a layer lie at one address, whichever a step ran with.
    """

    layers: list[tuple[SelectBuffers, ...]]  # [L], each as given to `of`
    num_active: Tensor  # int32 [L], a view of every layer's T
    retained_mass: Tensor  # float32 [L, max_rows of the largest], a view

    @classmethod
    def of(cls, num_layers: int, *kinds: SelectBuffers) -> LayerBuffers:
        num_numbers = max(kind.layout.num_numbers for kind in kinds)
        num_aligned = -(-num_numbers // ALIGNED_WORDS) * ALIGNED_WORDS
        rows = scratch.empty(num_layers, num_aligned, kinds[0].numbers)
        largest = max((kind.layout for kind in kinds), key=lambda layout: layout.max_rows)
        masses = rows[:, largest.retained_mass : largest.retained_mass + largest.max_rows]
        return cls(
            layers=[
                tuple(
                    replace(kind, numbers=row[None, : kind.layout.num_numbers], _views={})
                    for kind in kinds
                )
                for row in rows
            ],
            num_active=rows[:, 0],
            retained_mass=masses.view(torch.float32),
        )
