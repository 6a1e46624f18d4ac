"""The loop where steps run on a GPU: launched ahead, often as captured graphs.

No Python runs in a replayed step. All that a step needs is on the device before its launch, and
its counters come back with its result. With SGLang's overlap scheduling a step is launched while
the step before it runs: a decision takes effect two steps after the step that it was made from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from lynx_controller import Phase
from lynx_kernels.select.policies import MAX_ROWS as MAX_SELECT_ROWS
from lynx_sglang.errors import LynxError, UnsupportedError
from lynx_sglang.gpu.device_path import MAX_ROWS, DevicePath, Flight, Sizes
from lynx_sglang.gpu.expert_layers import ExpertLayers
from lynx_sglang.gpu.fused_runner import filled
from lynx_sglang.gpu.shadow import Shadows
from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.layers import MoeLayers
from lynx_sglang.loop.runtime import Routing, Runtime
from lynx_sglang.loop.scores import RouterScores
from lynx_sglang.loop.step import SIZE_CLASSES, Step
from lynx_sglang.settings import Settings
from lynx_sglang.sketches import SKETCHES_ON_GPU, StandIns

logger = logging.getLogger(__name__)


class GpuRuntime(Runtime):
    """Selects in decode and mixed steps, and waits for a step only where SGLang does."""

    def __init__(
        self,
        settings: Settings,
        layers: MoeLayers,
        path: DevicePath,
        size_classes: Sequence[int] = SIZE_CLASSES,
    ) -> None:
        super().__init__(settings, layers, path.buffer, size_classes)
        self.path = path
        self._shadows = Shadows(path.buffer.row_class.device)
        self._lane = 0  # of the step that is being launched
        self._captured: Phase | None = None  # of the graphs that are being captured
        self._is_proven = False  # every layer selects
        self._has_warned = False  # of a step that is too large

    def require_selection(self, sizes: Sequence[int]) -> None:
        """Stop a server with a layer that does not select, in a forward of one of these sizes.

        Raises:
            LynxError: names the layers.
        """
        for rows in filter(self.path.can_select, sizes):
            if layers := self.path.unselected(rows):
                raise LynxError(
                    f"--moe-backend lynx: MoE layers {', '.join(map(str, layers))} do not select "
                    f"in steps of {rows} rows: their routing does not come by SGLang's top-k. "
                    "Serve the model without --moe-backend lynx."
                )
            self._is_proven = True

    @contextmanager
    def capturing(self, phase: Phase = Phase.DECODE) -> Iterator[None]:
        """Inside, every layer that runs records its selection, for steps of this phase."""
        self.path.forget_selections()
        self._captured = phase
        try:
            yield
        finally:
            self._captured = None

    def select(
        self,
        layer_id: int,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        scores: RouterScores,
        correction_bias: torch.Tensor | None,
        *,
        is_final: bool = True,
    ) -> Routing | None:
        """While graphs are captured, and in steps that select and run without one.

        At full quality the launches are the same: the buffer says that nothing is cut. Experts of
        steps with prefill rows run as SGLang runs them.
        """
        phase = self._captured
        if phase is None and self.step is not None and self.step.is_selecting:
            phase = self.step.batch.phase
        if phase is None or not self.path.can_select(topk_ids.shape[0]):
            return None
        chosen = self.path.select(
            layer_id,
            topk_ids,
            topk_weights,
            scores,
            correction_bias,
            is_scheduled=is_final and phase is Phase.DECODE,
        )
        self.path.hand_over(layer_id, chosen.schedule, chosen.topk_weights)
        ids = chosen.topk_ids
        if self.path.fills_slots and layer_id not in self.path.fronted:
            ids = filled(ids)
        return ids, chosen.topk_weights

    def run_batch(
        self, original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any
    ) -> Any:
        """Launch a step; ``process_result`` accounts for it."""
        step = self.begin(scheduler, batch)
        step.is_selecting = self._can_select(step)
        step.is_shadowed = self.is_sampled(step)
        with forward_stream(scheduler):
            lane = self.path.begin(step)
        self.step, self._lane, ran_under = step, lane, self.decision
        try:
            result = original(scheduler, batch, *rest)
        finally:
            self.step = None
        if step.is_selecting and not self._is_proven:
            self.require_selection([len(step.row_class)])
        with forward_stream(scheduler):
            self.path.end(step, lane)
        result.lynx_flight = Flight(step, ran_under, batch.launch_ts, batch.after_idle_gap, lane)
        return result

    def _can_select(self, step: Step) -> bool:
        rows = len(step.row_class)  # none in prefill
        if step.batch.phase is Phase.DECODE:
            rows = self.size_class_of(rows)
        if rows > self.path.max_rows and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "lynx: a step of %d rows runs every expert: lynx selects in up to %d",
                rows,
                self.path.max_rows,
            )
        return self.path.can_select(rows)

    def process_result(self, result: Any) -> None:
        """Account for a launched step, just before SGLang waits for its tokens.

        A step's time is that between its end and the end of the step before it.
        """
        flight: Flight | None = getattr(result, "lynx_flight", None)
        if flight is not None:
            self.path.land(flight)
            step = flight.step
            if step.is_shadowed:
                step.shadow, step.shadow_ms = self._shadows.land(flight.lane)
            self.end(
                step,
                time.monotonic(),
                ran_under=flight.ran_under,
                launch_s=flight.launch_s,
                is_after_idle=flight.is_after_idle,
            )

    def run_twice(self, step: Step, forward: Callable[[], Any]) -> Any:
        """Launch both passes; ``process_result`` reads the comparison."""
        return self._shadows.run(step, self._lane, self.path.buffer, forward)


class GpuBuilder(Builder[GpuRuntime]):
    """Puts lynx's kernels in front of the layers that they cover; allocates before any capture."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.size_classes: Sequence[int] = SIZE_CLASSES
        self.prefill_sizes: Sequence[int] = ()  # of prefill graphs that hold selection, in tokens
        self._expert_layers = ExpertLayers()
        self._num_shared = 0  # of the layer built last, as are the next two
        self._ep_rank, self._ep_size = 0, 1

    def add_expert_layer(self, layer: Any) -> None:
        """Note a ``FusedMoE`` that SGLang has just built, before its weights are loaded."""
        self.add_layer(layer.moe_runner_config)
        self._num_shared = layer.moe_runner_config.num_fused_shared_experts or 0
        self._ep_rank, self._ep_size = layer.moe_ep_rank, layer.moe_ep_size
        self._expert_layers.add(layer)

    def note_decode_graphs(self, sizes: Sequence[int]) -> None:
        """Count steps under the sizes of the decode graphs."""
        self.size_classes = tuple(sorted(sizes))
        if self._runtime is not None:
            self._runtime.size_classes = self.size_classes

    def make(
        self,
        settings: Settings,
        layers: MoeLayers,
        contributions: Mapping[int, torch.Tensor],
        stand_ins: Mapping[int, StandIns],
    ) -> GpuRuntime:
        if stand_ins:
            raise UnsupportedError(SKETCHES_ON_GPU)
        sizes = Sizes(
            layers.ids,
            layers.num_experts,
            self._num_shared,
            layers.top_k,
            self._ep_rank,
            self._ep_size,
        )
        most = most_rows(self.prefill_sizes)
        if most > MAX_SELECT_ROWS:
            raise UnsupportedError(
                f"--moe-backend lynx: steps of up to {most} rows are not served: lynx selects in "
                f"up to {MAX_SELECT_ROWS}. Lower --max-running-requests, or, with "
                "--enable-mixed-chunk, --chunked-prefill-size and --cuda-graph-max-bs-prefill."
            )
        path = DevicePath(
            sizes,
            floor=settings.floor,
            policy=settings.policy,
            device=self._expert_layers.device,
            max_rows=most,
            selects_prefill=bool(self.prefill_sizes),
            contributions=contributions,
        )
        self._expert_layers.allocate(path)
        return GpuRuntime(settings, layers, path, self.size_classes)


def most_rows(prefill_sizes: Sequence[int]) -> int:
    """Rows of the largest step that a server may run: decode, or mixed where it mixes."""
    from sglang.srt.runtime_context import get_server_args

    args = get_server_args()
    decode_rows = max(MAX_ROWS, args.max_running_requests or 0)
    if not args.enable_mixed_chunk:
        return decode_rows
    return decode_rows + max(args.chunked_prefill_size or 0, *prefill_sizes, 0)


def forward_stream(scheduler: Any) -> AbstractContextManager[Any]:
    """The stream on which the scheduler queues a forward."""
    context: AbstractContextManager[Any] = scheduler.forward_stream_ctx
    return context if scheduler.enable_overlap else nullcontext()
