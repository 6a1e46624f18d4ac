"""The loop where the host runs the model: a step is over when ``run_batch`` returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from lynx_kernels import POLICIES, select, sketch, warm_up
from lynx_kernels.sketch import add_sketches, lost_slots
from lynx_sglang.errors import LynxError
from lynx_sglang.loop.buffer import Buffer
from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.layers import MoeLayers
from lynx_sglang.loop.runtime import Routing, Runtime
from lynx_sglang.loop.scores import RouterScores
from lynx_sglang.loop.shadow import compare, flexible_rows, log_probabilities
from lynx_sglang.loop.step import Step, pad_to
from lynx_sglang.settings import Settings
from lynx_sglang.sketches import StandIns, require_weights


class CpuRuntime(Runtime):
    """Selects in the forward, and runs sampled steps twice as shadow passes."""

    def __init__(
        self,
        settings: Settings,
        layers: MoeLayers,
        contributions: Mapping[int, torch.Tensor],
        stand_ins: Mapping[int, StandIns] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            contributions: by layer id, float32 [E]; see ``lynx_kernels.select``.
            stand_ins: by layer id; their experts' sketches take the place of a refill.
        """
        super().__init__(settings, layers, Buffer(layers.ids, layers.num_experts, settings.floor))
        self._policy, self._contributions = POLICIES[settings.policy], contributions
        self._stand_ins = stand_ins
        if stand_ins:
            self._policy = replace(self._policy, is_refilling=False)
            self._contributions = {layer: each.contribution for layer, each in stand_ins.items()}
        # Of the layer that runs next: lost ids, the router's weights, those after selection.
        self._lost: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

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
        step, buffer = self.step, self.buffer
        if step is None or not step.batch.rows:
            return None
        if not step.is_selecting:
            step.num_active[layer_id] = count_active(topk_ids, self.layers.num_experts)
            return None
        selection = select(
            scores(),
            topk_ids,
            topk_weights,
            pad_to(step.row_class, topk_ids.shape[0]),
            budget=buffer.caps[layer_id],
            floor=buffer.floor,
            demand=buffer.demand,
            policy=self._policy,
            correction_bias=correction_bias,
            contribution=self._contributions.get(layer_id),
        )
        masses = selection.retained_mass
        covered = masses
        if self._stand_ins:
            lost = lost_slots(topk_ids, selection.topk_ids)
            lost[len(step.row_class) :] = -1  # pads
            self._lost = lost, topk_weights, selection.topk_weights
            is_routed = (topk_ids >= 0) & (topk_ids < self.layers.num_experts)
            own = topk_weights.masked_fill(~is_routed, 0.0)
            covered = self._stand_ins[layer_id].covered(masses, own, lost)
        step.note_layer(layer_id, int(selection.num_active), masses.numpy(), covered.numpy())
        return selection.topk_ids, selection.topk_weights

    def finish_layer(
        self, config: Any, hidden: torch.Tensor, topk_weights: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Add the sketches of the experts that the layer's rows lost to its output [M, H].

        Of several ranks, whose outputs are summed, rank 0 adds them.

        Args:
            config: SGLang's ``MoeRunnerConfig`` of the layer.
            hidden, topk_weights: [M, H] and [M, K], as the experts got them.
        """
        if self._lost is None:
            return
        (lost, weights, chosen), self._lost = self._lost, None
        require_weights(config, chosen, topk_weights)
        if self.ranks.leads:
            add_sketches(output, hidden, lost, weights, self._stand_ins[config.layer_id].sketches)

    def run_batch(
        self, original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any
    ) -> Any:
        step = self.begin(scheduler, batch)
        step.is_selecting = step.batch.flexible_rows > 0 and not self.buffer.is_full
        step.is_shadowed = self.is_sampled(step)
        self.step = step
        try:
            result = original(scheduler, batch, *rest)
        finally:
            self.step = None
        missing = [layer for layer in self.layers.ids if layer not in step.num_active]
        if step.batch.rows and missing:
            raise LynxError(
                f"--moe-backend lynx: MoE layers {', '.join(map(str, missing))} do not select: "
                "their routing does not come by SGLang's top-k. "
                "Serve the model without --moe-backend lynx."
            )
        step.add_up_layers()
        self.end(
            step,
            time.monotonic(),
            ran_under=self.decision,
            launch_s=batch.launch_ts,
            is_after_idle=batch.after_idle_gap,
        )
        return result

    def run_twice(self, step: Step, forward: Callable[[], Any]) -> Any:
        rows = flexible_rows(step.row_class)
        began_s = time.monotonic()
        with self._all_experts():
            full = log_probabilities(forward(), rows)
        ended_s = time.monotonic()
        output = forward()
        served_s = time.monotonic()
        step.shadow = compare(full, log_probabilities(output, rows))
        step.shadow_ms = (ended_s - began_s + time.monotonic() - served_s) * 1e3
        return output

    @contextmanager
    def _all_experts(self) -> Iterator[None]:
        """Inside, every row keeps its own experts; neither Lynx nor SGLang's recorder notes it."""
        from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder

        step, self.step = self.step, None
        try:
            with get_global_expert_distribution_recorder().disable_this_region():
                yield
        finally:
            self.step = step


class CpuBuilder(Builder[CpuRuntime]):
    """Compiles selection for the model's sizes before the first step."""

    def make(
        self,
        settings: Settings,
        layers: MoeLayers,
        contributions: Mapping[int, torch.Tensor],
        stand_ins: Mapping[int, StandIns],
    ) -> CpuRuntime:
        warm_up(layers.num_experts, layers.top_k)
        if stand_ins:
            sketch.warm_up()
        return CpuRuntime(settings, layers, contributions, stand_ins)

    def finish_layer(self, *layer: Any) -> None:
        """See ``CpuRuntime.finish_layer``; nothing before the first step."""
        if self._runtime is not None:
            self._runtime.finish_layer(*layer)


def count_active(topk_ids: torch.Tensor, num_experts: int) -> int:
    """Distinct routed experts in ``topk_ids`` [M, K] (CPU); shared and empty slots don't count."""
    is_used = np.zeros(num_experts, dtype=bool)
    ids = topk_ids.numpy()
    is_used[ids[(ids >= 0) & (ids < num_experts)]] = True
    return int(is_used.sum())
