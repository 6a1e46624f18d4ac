"""Selection on a GPU: the same launches eagerly and in captured graphs, every address fixed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from lynx_controller import Decision
from lynx_kernels.schedule import Schedule
from lynx_kernels.select import (
    MAX_FUSED_ROWS,
    SCORINGS,
    LayerBuffers,
    SelectBuffers,
    Selection,
    find_policy,
    select_triton,
)
from lynx_sglang.gpu.counters import Counters
from lynx_sglang.loop.buffer import IN_FLIGHT, Buffer
from lynx_sglang.loop.scores import RouterScores
from lynx_sglang.loop.step import Step

logger = logging.getLogger(__name__)

MAX_ROWS = 4096  # of a decode step, as SGLang bounds its running requests on its own
MAX_SCHEDULED_ROWS = MAX_FUSED_ROWS  # Lynx's kernels run experts up to here, SGLang's above


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that all MoE layers of a model share."""

    layer_ids: list[int]  # ascending
    num_experts: int  # E, routed
    num_shared: int  # fused shared experts: ids from E up, a slot each
    top_k: int  # routed
    ep_rank: int = 0  # of the ranks that share the experts out
    ep_size: int = 1

    @property
    def num_slots(self) -> int:
        return self.top_k + self.num_shared

    @property
    def scheduled(self) -> range:
        """Ids of the experts that run here: all, or an expert-parallel rank's routed ones."""
        if self.ep_size == 1:
            return range(self.num_experts + self.num_shared)
        num_local = self.num_experts // self.ep_size
        return range(self.ep_rank * num_local, (self.ep_rank + 1) * num_local)


@dataclass(frozen=True, slots=True)
class Flight:
    """A step between its launch and its result."""

    step: Step
    ran_under: Decision
    launch_s: float
    is_after_idle: bool
    lane: int  # which of the IN_FLIGHT blocks carries it


class DevicePath:
    """All layers' selection, the schedules it makes, and what comes back of it.

    Per step, on the stream of the forward: ``begin`` sends decision and row classes, layers
    ``select``, ``end`` queues the counters' way back, and nothing waits. ``land`` reads them where
    SGLang waits for the same step's tokens, with the next step already launched.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        floor: int,
        policy: str,
        device: torch.device | str,
        max_rows: int = MAX_ROWS,
        selects_prefill: bool = False,
        contributions: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            max_rows: of a step that selects.
            selects_prefill: prefill graphs hold selection, for mixed steps.
            contributions: by layer id, float32 [E]: see ``lynx_kernels.select``.
        """
        self.sizes, self.max_rows = sizes, max_rows
        self._selects_prefill = selects_prefill
        # Set by ``ExpertLayers``. SGLang's runners read ids -1 as an expert's:
        self.fills_slots = False
        self.fronted: set[int] = set()  # layers that Lynx's kernels run, which read no ids
        self.buffer = Buffer(
            sizes.layer_ids, sizes.num_experts, floor, max_rows=max_rows, device=device
        )
        self._policy = find_policy(policy)
        self._contributions = {layer: row.to(device) for layer, row in contributions.items()}

        def allocate(num_rows: int, scheduled: range) -> SelectBuffers:
            return SelectBuffers.allocate(
                max_rows=num_rows,
                top_k=sizes.num_slots,
                num_experts=sizes.num_experts,
                num_scheduled=len(scheduled),
                first_expert=scheduled.start,
                device=device,
            )

        outputs = LayerBuffers.of(
            len(sizes.layer_ids),
            allocate(min(max_rows, MAX_SCHEDULED_ROWS), sizes.scheduled),
            allocate(max_rows, range(0)),
        )
        outputs.num_active.zero_()
        outputs.retained_mass.fill_(1.0)
        self._outputs = dict(zip(sizes.layer_ids, outputs.layers, strict=True))
        self._counters = Counters(outputs.num_active, outputs.retained_mass)
        self._schedules: dict[int, tuple[Schedule, Tensor]] = {}  # and the weights beside it
        self._selected: dict[int, set[int]] = {}  # layers, by rows of a forward that ran in Python
        self._rescaled: set[int] = set()  # layers whose weights change after selection
        self._num_begun = 0

    # ------------------------------------------------------------------ in a forward

    def can_select(self, rows: int) -> bool:
        return 0 < rows <= self.max_rows

    def select(
        self,
        layer_id: int,
        topk_ids: Tensor,
        topk_weights: Tensor,
        scores: RouterScores,
        correction_bias: Tensor | None,
        *,
        is_scheduled: bool = True,
    ) -> Selection:
        """One layer's selection, under what the buffer holds when it runs.

        Args:
            is_scheduled: with a schedule, where there are at most MAX_SCHEDULED_ROWS.
        """
        buffer, rows = self.buffer, topk_ids.shape[0]
        is_inside = scores.scoring in SCORINGS  # else by a launch of its own
        self._selected.setdefault(rows, set()).add(layer_id)
        scheduled, unscheduled = self._outputs[layer_id]
        return select_triton(
            (scores.logits if is_inside else scores()).contiguous(),
            topk_ids.int().contiguous(),
            topk_weights.float().contiguous(),
            buffer.row_class[:rows],
            budget=buffer.caps[layer_id],
            floor=buffer.floor,
            demand=buffer.demand,
            policy=self._policy,
            correction_bias=None if correction_bias is None else correction_bias.float(),
            contribution=self._contributions.get(layer_id),
            scoring=scores.scoring if is_inside else "none",
            out=scheduled if is_scheduled and rows <= MAX_SCHEDULED_ROWS else unscheduled,
        )

    def hand_over(self, layer_id: int, schedule: Schedule | None, topk_weights: Tensor) -> None:
        """Keep a layer's schedule for its runner, which comes next."""
        if schedule is not None:
            self._schedules[layer_id] = schedule, topk_weights

    def take(self, layer_id: int, topk_weights: Tensor) -> Schedule | None:
        """The schedule that a layer's runner is to run; None where none was made.

        ``topk_weights``: what the runner was given. A model may scale weights or append slots
        after selection: then the schedule is not what it asks for, and SGLang's runner serves it.
        """
        schedule, selected = self._schedules.pop(layer_id, (None, topk_weights))
        is_same = selected.data_ptr() == topk_weights.data_ptr()
        if is_same and selected.shape == topk_weights.shape:
            return schedule
        if layer_id not in self._rescaled:
            self._rescaled.add(layer_id)
            logger.warning(
                "MoE layer %d changes its routing after selection: SGLang's runner runs it",
                layer_id,
            )
        return None

    def forget_selections(self) -> None:
        """Count from here on which layers select."""
        self._selected.clear()

    def unselected(self, rows: int) -> list[int]:
        """Layers that never selected in a forward of so many rows, or of the next size run."""
        ran = min((size for size in self._selected if size >= rows), default=0)
        seen = self._selected.get(ran, set())
        return [layer_id for layer_id in self.sizes.layer_ids if layer_id not in seen]

    # ------------------------------------------------------------------ around a forward

    def begin(self, step: Step) -> int:
        """Send what a step is to run under; its lane."""
        self._schedules.clear()  # a forward that failed may have left some
        lane = self._num_begun % IN_FLIGHT
        self._num_begun += 1
        self._counters.wait(lane)  # for the step IN_FLIGHT before, whose result was out long ago
        if step.is_selecting:
            self.buffer.send(step.row_class, lane)
        elif self._selects_prefill:
            self.buffer.send_exact(lane)
        return lane

    def end(self, step: Step, lane: int) -> None:
        """Queue the way back of a launched step's counters."""
        rows = slice(step.first_decode_row, len(step.row_class))
        self._counters.read(lane, rows if step.is_selecting else slice(0, 0))

    def land(self, flight: Flight) -> None:
        """Wait for a step, as its result is about to, and note in it what each layer did."""
        self._counters.wait(flight.lane)
        step, layers = flight.step, self.sizes.layer_ids
        if not step.is_selecting:
            return
        num_active, masses = self._counters.of(flight.lane)
        step.num_active = dict(zip(layers, num_active.tolist(), strict=True))
        step.note_masses(layers, masses)
