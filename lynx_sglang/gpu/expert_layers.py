"""The MoE layers of a model on a GPU, and the runner of each layer's experts."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch

from lynx_kernels.fused_moe import Workspace
from lynx_sglang import sglang_names
from lynx_sglang.gpu.device_path import MAX_SCHEDULED_ROWS, DevicePath
from lynx_sglang.gpu.fused_runner import FusedRunner, builder_of, uncovered
from lynx_sglang.settings import BACKEND

logger = logging.getLogger(__name__)


class ExpertLayers:
    """Puts a ``FusedRunner`` on the layers that Lynx's kernels cover; counts why others are not."""

    def __init__(self) -> None:
        self._runners: list[FusedRunner] = []
        self._left: Counter[str] = Counter()  # layers by "runner: reason"
        self.device = torch.device("cuda")

    def add(self, layer: Any) -> None:
        """Note a ``FusedMoE`` that SGLang has just built, before its weights are loaded."""
        from sglang.srt.runtime_context import get_server_args

        config, builder = layer.moe_runner_config, builder_of(layer)
        self.device = next(layer.parameters()).device  # formats name their weights differently
        runner = getattr(builder, "runner", None)
        reason: str | None
        if get_server_args().moe_runner_backend != BACKEND:
            reason = "--moe-runner-backend names it"
        elif runner is None or not runner.runner_backend.is_triton() or runner.fused_func is None:
            reason = f"{type(builder).__name__} has no Triton runner"
        else:
            reason = uncovered(builder, config, self.device)
        if reason is None:
            front = FusedRunner(layer, builder.runner.fused_func)
            builder.runner.fused_func = front
            self._runners.append(front)
        else:
            # A layer of SGLang 0.5.22 does not name its runner.
            backend = getattr(layer, "runner_backend", None)
            backend = getattr(runner, "runner_backend", None) if backend is None else backend
            name = "a kernel of its own" if backend is None else backend.value
            self._left[f"{name}: {reason}"] += 1

    def allocate(self, path: DevicePath) -> None:
        """Allocate scratch before any capture; log which runner serves how many layers, and why."""
        workspaces: dict[Any, Workspace] = {}
        path.fills_slots = path.sizes.ep_size == 1 and sglang_names.takes_empty_slots_for_experts()
        for runner in self._runners:
            path.fronted.add(runner.allocate(path, workspaces))
        if self._runners:
            logger.info(
                "lynx's kernels run the experts of %d layers in decode steps of up to %d rows, "
                "SGLang's triton runs them in all other steps, behind lynx's selection in decode",
                len(self._runners),
                min(path.max_rows, MAX_SCHEDULED_ROWS),
            )
        for runner_and_reason, count in self._left.items():
            logger.info(
                "behind lynx's selection, SGLang runs the experts of %d layers with %s",
                count,
                runner_and_reason,
            )
