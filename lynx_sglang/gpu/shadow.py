"""Shadow passes on a GPU: a step launched twice, eagerly or as one graph, compared on the device.

A captured graph reads caps and demand from the buffer, so the buffer alone tells its two launches
apart. Nothing waits: the comparison comes back behind the step, as its counters do. Layers write
the counters of both passes to one place, and the served pass is the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lynx_sglang.loop.buffer import IN_FLIGHT, Buffer
from lynx_sglang.loop.shadow import Comparison, divergence, flexible_rows, take_logits
from lynx_sglang.loop.step import Step

MAX_COMPARED_ROWS = 256  # of a step; their logits are kept from one pass to the next
ROWS_AT_ONCE = 32  # in float32, beside the logits


@dataclass(slots=True)
class Lane:
    """Pinned memory for one step's comparison, and the events that time what it adds."""

    rows: Tensor  # int64 [MAX_COMPARED_ROWS], pinned
    kl: Tensor  # float32 [MAX_COMPARED_ROWS], pinned
    agrees: Tensor  # bool [MAX_COMPARED_ROWS], pinned
    full_began: Any  # torch.cuda.Event with timing, as are the next three
    full_ended: Any
    served: Any
    compared: Any
    count: int = 0  # rows of the last step

    @classmethod
    def allocate(cls, device: torch.device) -> Lane:
        def pinned(dtype: torch.dtype) -> Tensor:
            return torch.zeros(MAX_COMPARED_ROWS, dtype=dtype, pin_memory=device.type == "cuda")

        def event() -> Any:
            return torch.get_device_module(device).Event(enable_timing=True)

        return cls(
            rows=pinned(torch.int64),
            kl=pinned(torch.float32),
            agrees=pinned(torch.bool),
            full_began=event(),
            full_ended=event(),
            served=event(),
            compared=event(),
        )


class Shadows:
    """Runs sampled steps with every expert first, for IN_FLIGHT steps at once."""

    def __init__(self, device: torch.device) -> None:
        self._rows = torch.zeros(MAX_COMPARED_ROWS, dtype=torch.int64, device=device)
        self._kl = torch.zeros(MAX_COMPARED_ROWS, device=device)
        self._agrees = torch.zeros(MAX_COMPARED_ROWS, dtype=torch.bool, device=device)
        self._lanes = [Lane.allocate(device) for _ in range(IN_FLIGHT)]

    def run(self, step: Step, lane: int, buffer: Buffer, forward: Callable[[], Any]) -> Any:
        """Launch both passes of a step, on the current stream; the output of the served one.

        Args:
            lane: the one that ``buffer`` was sent by.
            forward: launches one pass; returns SGLang's ``ModelRunnerOutput``.
        """
        into = self._lanes[lane]
        chosen = spread(flexible_rows(step.row_class))
        into.count = len(chosen)
        into.rows[: into.count] = chosen
        rows = self._rows[: into.count]
        into.full_began.record()
        rows.copy_(into.rows[: into.count], non_blocking=True)
        with buffer.uncapped(lane):
            full = take_logits(forward(), rows)  # a graph's next launch overwrites its own
        into.full_ended.record()
        output = forward()
        into.served.record()
        self._compare(full, output, rows)
        for pinned, found in ((into.kl, self._kl), (into.agrees, self._agrees)):
            pinned[: into.count].copy_(found[: into.count], non_blocking=True)
        into.compared.record()
        return output

    def _compare(self, full: Tensor, output: Any, rows: Tensor) -> None:
        """``full``: logits [rows, V] of the full pass. ``output``: of the served pass."""
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, min(start + ROWS_AT_ONCE, len(rows)))
            passes = (full[part], take_logits(output, rows[part]))
            pair = (logits.log_softmax(dim=-1, dtype=torch.float32) for logits in passes)
            self._kl[part], self._agrees[part] = divergence(*pair)

    def land(self, lane: int) -> tuple[Comparison, float]:
        """The comparison of the step in a lane, and what it added to the step, in ms.

        Its copies have run: the step's counters come behind them.
        """
        seen = self._lanes[lane]
        added_ms = seen.full_began.elapsed_time(seen.full_ended)
        added_ms += seen.served.elapsed_time(seen.compared)
        comparison = Comparison(seen.kl[: seen.count].tolist(), seen.agrees[: seen.count].tolist())
        return comparison, added_ms


def spread(rows: Tensor) -> Tensor:
    """At most MAX_COMPARED_ROWS of the rows, at even distances."""
    stride = -(-len(rows) // MAX_COMPARED_ROWS)
    return rows[:: max(1, stride)]
