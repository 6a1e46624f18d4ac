"""The loop where the host runs the model: a step is over when ``run_batch`` returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lynx_kernels import select, warm_up
from lynx_sglang.errors import LynxError
from lynx_sglang.loop.buffer import Buffer
from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.layers import MoeLayers
from lynx_sglang.loop.runtime import Routing, Runtime
from lynx_sglang.loop.scores import RouterScores
from lynx_sglang.loop.shadow import compare, flexible_rows, log_probabilities
from lynx_sglang.loop.step import Step, pad_to
from lynx_sglang.settings import Settings


class CpuRuntime(Runtime):
    """Selects in the forward, and runs sampled steps twice as shadow passes."""

    def __init__(
        self,
        settings: Settings,
        layers: MoeLayers,
        contributions: Mapping[int, torch.Tensor],
    ) -> None:
        """
        Args:
            contributions: by layer id, float32 [E]; see ``lynx_kernels.select``.
        """
        super().__init__(settings, layers, Buffer(layers.ids, layers.num_experts, settings.floor))
        self._contributions = contributions

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
            policy=self.settings.policy,
            correction_bias=correction_bias,
            contribution=self._contributions.get(layer_id),
        )
        step.note_layer(layer_id, int(selection.num_active), selection.retained_mass.numpy())
        return selection.topk_ids, selection.topk_weights

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
    ) -> CpuRuntime:
        warm_up(layers.num_experts, layers.top_k)
        return CpuRuntime(settings, layers, contributions)


def count_active(topk_ids: torch.Tensor, num_experts: int) -> int:
    """Distinct routed experts in ``topk_ids`` [M, K] (CPU); shared and empty slots don't count."""
    is_used = np.zeros(num_experts, dtype=bool)
    ids = topk_ids.numpy()
    is_used[ids[(ids >= 0) & (ids < num_experts)]] = True
    return int(is_used.sum())
