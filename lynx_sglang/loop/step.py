"""One forward step of the scheduler: input of selection and of the controller."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lynx_controller import Batch, Phase
from lynx_kernels import RowClass
from lynx_sglang.loop.prefill import Prefill
from lynx_sglang.loop.shadow import Comparison
from lynx_sglang.loop.tier import Tier, tier_of
from lynx_sglang.loop.waiting import Waiting

SIZE_CLASSES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
HEALTH_CHECK_PREFIX = "HEALTH_CHECK"  # ids of SGLang's probes


@dataclass(slots=True)
class Step:
    """A batch that is about to run, and counts of each layer once it ran."""

    number: int
    batch: Batch
    row_class: torch.Tensor  # uint8 [rows]; empty in prefill and idle steps
    requests: list[Any]  # the decoding requests, in the order of their rows; further beams follow
    first_decode_row: int
    kv_tokens: int
    waiting: Waiting | None = None  # with a TTFT target
    prefill: Prefill | None = None  # of a prefill step, where prefill is paced
    is_selecting: bool = False  # layers select experts in this step
    is_shadowed: bool = False  # it also runs with every expert
    shadow: Comparison | None = None
    shadow_ms: float = 0.0  # duration of the shadow pass
    num_active: dict[int, int] = field(default_factory=dict)  # by layer id
    retained_mass: dict[int, float] = field(default_factory=dict)  # mean over flexible rows
    covered_mass: dict[int, float] = field(default_factory=dict)  # so, with what sketches add
    row_retained_mass: np.ndarray[Any, Any] | None = None  # sum over layers, [requests]
    row_covered_mass: np.ndarray[Any, Any] | None = None  # sum over layers, [requests]
    _row_masses: dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = field(
        default_factory=dict
    )  # until added up

    def note_layer(
        self,
        layer_id: int,
        num_active: int,
        row_mass: np.ndarray[Any, Any],
        row_covered: np.ndarray[Any, Any] | None = None,
    ) -> None:
        """Record one layer after selection.

        Args:
            num_active: T.
            row_mass: [M >= rows], each row's retained mass.
            row_covered: [M >= rows], with the mass that sketches stand in for; None: no sketches.
        """
        self.num_active[layer_id] = num_active
        self._row_masses[layer_id] = row_mass, row_mass if row_covered is None else row_covered

    def add_up_layers(self) -> None:
        """Add up the layers of ``note_layer``, once per step."""
        if self._row_masses:
            rows = slice(self.first_decode_row, self.first_decode_row + self.batch.rows)
            masses, covered = (
                np.stack([row_mass[rows] for row_mass in each])
                for each in zip(*self._row_masses.values(), strict=True)
            )
            self.note_masses(list(self._row_masses), masses, covered)

    def note_masses(
        self,
        layer_ids: list[int],
        masses: np.ndarray[Any, Any],
        covered: np.ndarray[Any, Any] | None = None,
    ) -> None:
        """Record the retained and the covered mass of each layer and decode row: [L, rows]."""
        masses = masses[:, : len(self.requests)]
        covered = masses if covered is None else covered[:, : len(self.requests)]
        self.row_retained_mass = masses.sum(axis=0, dtype=float)
        self.row_covered_mass = covered.sum(axis=0, dtype=float)
        self.retained_mass = self._means(layer_ids, masses)
        self.covered_mass = self._means(layer_ids, covered)

    def _means(self, layer_ids: list[int], masses: np.ndarray[Any, Any]) -> dict[int, float]:
        """Mean over the flexible rows, by layer; empty without any."""
        if not self.batch.flexible_rows:
            return {}
        # Exact rows lose nothing: the sum of losses is that of the flexible rows.
        means = 1.0 - (1.0 - masses).sum(axis=1, dtype=float) / self.batch.flexible_rows
        return dict(zip(layer_ids, means.tolist(), strict=True))


def phase_of(batch: Any) -> Phase:
    """Phase of SGLang's forward mode; MIXED is also ``is_extend()``, so it is tested first."""
    mode = batch.forward_mode
    if mode.is_mixed():
        return Phase.MIXED
    if mode.is_decode():
        return Phase.DECODE
    if mode.is_target_verify():
        return Phase.VERIFY
    if mode.is_idle() or mode.is_prebuilt():
        return Phase.IDLE
    return Phase.PREFILL


def step_of(
    batch: Any, number: int, default_tier: Tier, size_class_of: Callable[[int], int]
) -> Step:
    """Describe a ``ScheduleBatch``; only decode rows of the flexible tier are flexible."""
    phase = phase_of(batch)
    beam_rows = 0  # further beams of requests that search, all exact
    if phase is Phase.DECODE:
        requests, first_row = list(batch.reqs), 0
        beam_rows = len(batch.seq_lens) - len(requests)
    elif phase is Phase.MIXED:
        requests = list(batch.decoding_reqs or [])
        first_row = sum(batch.extend_lens) - len(requests)
    else:
        requests, first_row = [], 0
    flexible = [is_flexible(request, default_tier) for request in requests]
    rows = len(requests) + beam_rows
    classes = np.full(first_row + rows, RowClass.EXACT, dtype=np.uint8)
    classes[first_row : first_row + len(requests)][flexible] = RowClass.FLEXIBLE
    return Step(
        number=number,
        batch=Batch(phase, rows, sum(flexible), size_class_of(rows)),
        row_class=torch.from_numpy(classes),
        requests=requests,
        first_decode_row=first_row,
        kv_tokens=int(batch.seq_lens_cpu.sum()) if batch.seq_lens_cpu is not None else 0,
    )


def batch_ahead(scheduler: Any, default_tier: Tier, size_class_of: Callable[[int], int]) -> Batch:
    """The next decode batch that ``Scheduler.get_next_batch_to_run`` will merge.

    Call it before a loop's batch is built. 0 rows: nothing is left to decode.
    """
    last = scheduler.last_batch
    requests = list(scheduler.running_batch.reqs)
    if last is not None and last.forward_mode.is_extend():
        unfinished_prefills = (scheduler.chunked_req, last.chunked_req)
        requests += [each for each in last.reqs if each not in unfinished_prefills]
    requests = [each for each in requests if not each.finished()]
    flexible_rows = sum(is_flexible(each, default_tier) for each in requests)
    return Batch(Phase.DECODE, len(requests), flexible_rows, size_class_of(len(requests)))


def is_flexible(request: Any, default_tier: Tier) -> bool:
    """Whether selection may change a decoding request's experts."""
    return tier_of(request, default_tier) is Tier.FLEXIBLE and not is_probe(request)


def is_probe(request: Any) -> bool:
    return isinstance(request.rid, str) and request.rid.startswith(HEALTH_CHECK_PREFIX)


def pad_to(row_class: torch.Tensor, rows: int) -> torch.Tensor:
    """``row_class`` extended to ``rows`` with PAD, for the rows that SGLang pads a batch with."""
    if rows == row_class.shape[0]:
        return row_class
    padded = torch.full((rows,), RowClass.PAD, dtype=torch.uint8)
    padded[: row_class.shape[0]] = row_class
    return padded


def size_class_of(rows: int, size_classes: Sequence[int] = SIZE_CLASSES) -> int:
    """The smallest of ``size_classes`` (ascending) that holds ``rows``; above: multiples of 256."""
    if rows > size_classes[-1]:
        return -(-rows // 256) * 256
    return size_classes[bisect_left(size_classes, rows)]
