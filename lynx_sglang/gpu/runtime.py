"""The two loops where steps run on a GPU: launched ahead, often as captured graphs.

No Python runs in a replayed step, so all that a step needs is on the device before it, and what it
did comes back with its result. With SGLang's overlap scheduling a step is launched while the one
before it runs: a decision then takes effect two steps after the step that it was made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lynx_controller import Phase
from lynx_sglang.gpu import expert_layers
from lynx_sglang.gpu.device_path import DevicePath, Flight, Sizes
from lynx_sglang.loop.buffer import Buffer
from lynx_sglang.loop.runtime import Routing, Runtime
from lynx_sglang.settings import Settings


class GpuRuntime(Runtime):
    """Selection inside the forward, control around it, and nothing that waits between."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.layers = expert_layers.ExpertLayers()
        self.path: DevicePath | None = None  # made before the first capture or step
        self.num_shared = 0  # set while the model is built, as are the next two
        self.ep_rank, self.ep_size = 0, 1
        self._is_capturing = False

    # ------------------------------------------------------------------ start

    def add_expert_layer(self, layer: Any) -> None:
        self.add_layer(layer.moe_runner_config)
        self.num_shared = layer.moe_runner_config.num_fused_shared_experts or 0
        self.ep_rank, self.ep_size = layer.moe_ep_rank, layer.moe_ep_size
        self.layers.add(layer)

    def make_buffer(self) -> Buffer:
        sizes = Sizes(
            self.layer_ids,
            self.num_experts,
            self.num_shared,
            self.top_k,
            self.ep_rank,
            self.ep_size,
        )
        self.path = DevicePath(
            sizes,
            floor=self.settings.floor,
            policy=self.settings.policy,
            device=self.layers.device,
            contributions=self.contributions,
        )
        self.layers.allocate(self.path)
        return self.path.buffer

    def capture(self, original: Callable[..., None], graph_runner: Any) -> None:
        """The hook around the capture of decode graphs: every size records its selection."""
        if self.path is None:
            self.start()
        self.size_classes = tuple(sorted(graph_runner.capture_bs))
        self._is_capturing = True
        try:
            original(graph_runner)
        finally:
            self._is_capturing = False

    # -------------------------------------------------------------- data path

    def select(
        self,
        layer_id: int,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        scores: Callable[[], torch.Tensor],
        correction_bias: torch.Tensor | None,
        *,
        is_final: bool = True,
    ) -> Routing | None:
        """While decode graphs are captured, and in decode steps that run without one.

        Full quality is what the buffer says, not a launch that is left out.
        """
        path, is_step = self.path, self.step is not None and self.step.is_selecting
        if path is None or not (self._is_capturing or is_step):
            return None
        if not path.can_select(topk_ids.shape[0]):
            return None
        chosen = path.select(layer_id, topk_ids, topk_weights, scores, correction_bias)
        if is_final:
            path.hand_over(layer_id, chosen.schedule)
        return chosen.topk_ids, chosen.topk_weights

    # ----------------------------------------------------------- control path

    def run_batch(
        self, original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any
    ) -> Any:
        """The hook around ``Scheduler.run_batch``, which launches a step."""
        step = self.begin(scheduler, batch)
        assert self.path is not None
        assert self.decision is not None
        is_decode = step.batch.phase is Phase.DECODE
        step.is_selecting = is_decode and self.path.can_select(self.size_class_of(step.batch.rows))
        with forward_stream(scheduler):
            lane = self.path.begin(step)
        self.step, ran_under = step, self.decision
        try:
            result = original(scheduler, batch, *rest)
        finally:
            self.step = None
        with forward_stream(scheduler):
            self.path.end(step, lane)
        result.lynx_flight = Flight(step, ran_under, batch.launch_ts, batch.after_idle_gap, lane)
        return result

    def refuse_shadow(self, model_config: Any) -> str | None:
        return "captured steps do not run twice"

    def process_result(
        self, original: Callable[..., Any], scheduler: Any, batch: Any, result: Any
    ) -> Any:
        """The hook around ``Scheduler.process_batch_result``, which waits for a step's tokens.

        A step's time is that between its end and the end of the step before it.
        """
        flight: Flight | None = getattr(result, "lynx_flight", None)
        if flight is not None:
            assert self.path is not None
            self.path.land(flight)
            self.end(
                flight.step,
                time.monotonic(),
                ran_under=flight.ran_under,
                launch_s=flight.launch_s,
                is_after_idle=flight.is_after_idle,
            )
        return original(scheduler, batch, result)


def forward_stream(scheduler: Any) -> AbstractContextManager[Any]:
    """Where the scheduler queues a forward."""
    context: AbstractContextManager[Any] = scheduler.forward_stream_ctx
    return context if scheduler.enable_overlap else nullcontext()
