"""The buffer between control path and data path: a decision writes it, every layer reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_controller import Decision
from lynx_kernels import RowClass

IN_FLIGHT = 4  # steps between launch and result: SGLang's overlap needs two


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed views of one block of bytes, whose address captured graphs and copies keep."""

    memory: Tensor  # uint8 [n]
    caps: Tensor  # int32 [L], of the layers in ascending order
    floor: Tensor  # int32 []
    demand: Tensor  # float32 []
    row_class: Tensor  # uint8 [max_rows]

    @classmethod
    def over(cls, memory: Tensor, num_layers: int) -> Fields:
        words = memory[: header_bytes(num_layers)].view(torch.int32)
        return cls(
            memory=memory,
            caps=words[:num_layers],
            floor=words[num_layers],
            demand=words[num_layers + 1].view(torch.float32),
            row_class=memory[header_bytes(num_layers) :],
        )


def header_bytes(num_layers: int) -> int:
    return 4 * (num_layers + 2)


class Buffer:
    """Inputs of selection at fixed addresses, so that a decision changes no shape.

    On a CPU max_rows is 0: the layers read what ``write`` wrote, and row classes come with the
    step. On a GPU ``send`` queues one copy of the whole block before a step, from one of IN_FLIGHT
    pinned blocks. Nothing waits.
    """

    def __init__(
        self,
        layer_ids: list[int],
        num_experts: int,
        floor: int,
        *,
        max_rows: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        num_layers, is_pinned = len(layer_ids), torch.device(device).type == "cuda"
        num_bytes = header_bytes(num_layers) + max_rows
        self._live = Fields.over(
            torch.zeros(num_bytes, dtype=torch.uint8, device=device), num_layers
        )
        # Before the first step no row's routing changes.
        self._live.row_class.fill_(RowClass.EXACT)
        self._num_rows_sent, self._num_experts = max_rows, num_experts
        self._written = self._live
        self._blocks: list[Tensor] = []
        if max_rows:
            self._written = Fields.over(torch.zeros(num_bytes, dtype=torch.uint8), num_layers)
            self._blocks = [
                torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
                for _ in range(IN_FLIGHT)
            ]
        head = torch.zeros(header_bytes(num_layers), dtype=torch.uint8, device=device)
        self._full = Fields.over(head, num_layers)  # caps that cut nothing, and no row classes
        for fields in (self._live, self._written, self._full):
            fields.caps.fill_(num_experts)
            fields.floor.fill_(floor)
            fields.demand.fill_(1.0)
        self.caps = dict(zip(layer_ids, self._live.caps.unbind(), strict=True))
        self.floor, self.demand = self._live.floor, self._live.demand
        self.row_class = self._live.row_class
        self.is_full = True  # no cap and no demand: a CPU need not select

    def write(self, decision: Decision, num_experts: int) -> None:
        """Write a decision's caps and demand."""
        self._written.caps.numpy()[:] = decision.budget
        self._written.demand.fill_(decision.demand)
        self.is_full = decision.demand >= 1.0 and min(decision.budget) >= num_experts

    def set_floor(self, floor: int) -> None:
        self._written.floor.fill_(floor)

    def send(self, row_class: Tensor, lane: int) -> None:
        """Queue a copy of the written block and a step's row classes on the current stream.

        Args:
            row_class: uint8 [rows] on the CPU; all rows above them become PAD.
            lane: index of the pinned block; its last copy must have run.
        """
        block, rows = self._blocks[lane], len(row_class)
        head = header_bytes(len(self.caps))
        end = head + max(rows, self._num_rows_sent)
        block[:head] = self._written.memory[:head]
        block[head : head + rows] = row_class
        block[head + rows : end] = RowClass.PAD
        self._live.memory[:end].copy_(block[:end], non_blocking=True)
        self._num_rows_sent = rows

    @contextmanager
    def uncapped(self, lane: int) -> Iterator[None]:
        """Inside, the step that ``send`` queued from a lane runs at full quality.

        Its row classes stay. Both ends queue a copy on the current stream.
        """
        head = self._live.memory[: header_bytes(len(self.caps))]
        head.copy_(self._full.memory)
        try:
            yield
        finally:
            head.copy_(self._blocks[lane][: len(head)], non_blocking=True)

    def send_exact(self, lane: int) -> None:
        """Queue a copy under which every row is exact and no cap binds; see ``send``."""
        fields = Fields.over(self._blocks[lane], len(self.caps))
        fields.caps.fill_(self._num_experts)
        fields.demand.fill_(1.0)
        fields.row_class.fill_(RowClass.EXACT)
        self._live.memory.copy_(fields.memory, non_blocking=True)
        self._num_rows_sent = len(fields.row_class)
