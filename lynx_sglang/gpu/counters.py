"""Counters of selection, copied from a GPU behind each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_sglang.loop.buffer import IN_FLIGHT

IntArray = np.ndarray[Any, np.dtype[np.int32]]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(slots=True)
class Readback:
    """Pinned memory for one step's counters, and the event behind its copy."""

    num_active: Tensor  # int32 [L], pinned
    retained_mass: Tensor  # float32 [L * max_rows], pinned
    event: Any  # torch.cuda.Event, or its like on other devices
    rows: int = 0


class Counters:
    """Copies T [L] and retained mass [L, M] of all layers, for IN_FLIGHT steps at once."""

    def __init__(self, num_active: Tensor, retained_mass: Tensor) -> None:
        """
        Args:
            num_active: int32 [L], T as the layers write it.
            retained_mass: float32 [L, max_rows], each row's as the layers write it.
        """
        self._num_active, self._retained_mass = num_active, retained_mass
        device, is_pinned = num_active.device, num_active.is_cuda
        self._readbacks = [
            Readback(
                num_active=torch.empty(len(num_active), dtype=torch.int32, pin_memory=is_pinned),
                retained_mass=torch.empty(retained_mass.numel(), pin_memory=is_pinned),
                event=torch.get_device_module(device).Event(),
            )
            for _ in range(IN_FLIGHT)
        ]

    def read(self, lane: int, rows: slice) -> None:
        """Queue the copy of a step's counters on the current stream.

        Args:
            rows: those that decode, start and stop given; none if the step selected nothing.
        """
        readback = self._readbacks[lane]
        readback.rows = rows.stop - rows.start
        if readback.rows:
            readback.num_active.copy_(self._num_active, non_blocking=True)
            _masses(readback).copy_(self._retained_mass[:, rows], non_blocking=True)
        readback.event.record()

    def wait(self, lane: int) -> None:
        """Block until the lane's last copy has run, and the step before it."""
        self._readbacks[lane].event.synchronize()

    def of(self, lane: int) -> tuple[IntArray, FloatArray]:
        """T [L] and retained mass [L, rows] of the step in a lane, after ``wait``.

        Views, valid until the next ``read`` of the lane.
        """
        readback = self._readbacks[lane]
        return readback.num_active.numpy(), _masses(readback).numpy()


def _masses(readback: Readback) -> Tensor:
    num_layers = len(readback.num_active)
    return readback.retained_mass[: num_layers * readback.rows].view(num_layers, readback.rows)
