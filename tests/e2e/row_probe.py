"""An SGLang plugin of the tests: random weights, and what selection does to each decode step.

For every decode step of a Lynx server it appends a line of JSON to the file ``ROW_PROBE``, a list
of its layers: T that reached the dispatcher; the bound of T that floors and exact rows give;
whether exact rows kept ids and weights, bit for bit; how many flexible rows lost an expert.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from tests.e2e import random_weights

VARIABLE = "ROW_PROBE"
TOP_K = "sglang.srt.layers.moe.topk._post_process_topk_ids"
DISPATCH = "sglang.srt.layers.moe.token_dispatcher.standard.StandardDispatcher.dispatch"
STEP = "sglang.srt.managers.scheduler.Scheduler.run_batch"


def register() -> None:
    random_weights.register()
    if VARIABLE in os.environ:
        probe = RowProbe(Path(os.environ[VARIABLE]))
        HookRegistry.register(TOP_K, probe.post_process, HookType.AROUND)  # around Lynx's own hook
        HookRegistry.register(DISPATCH, probe.dispatch, HookType.AROUND)
        HookRegistry.register(STEP, probe.run_step, HookType.AROUND)


class RowProbe:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._exact: torch.Tensor | None = None  # bool [rows]; None in other than decode steps
        self._num_experts = 0
        self._layers: list[dict[str, Any]] = []

    def run_step(self, original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any) -> Any:
        self._layers, self._exact = [], None
        if batch.forward_mode.is_decode():
            asked = [request.sampling_params.custom_params or {} for request in batch.reqs]
            self._exact = torch.tensor([each.get("lynx") == "exact" for each in asked])
        result = original(scheduler, batch, *rest)
        if self._exact is not None:
            with self._file.open("a") as lines:
                lines.write(json.dumps(self._layers) + "\n")
        return result

    def post_process(self, original: Callable[..., Any], **call: Any) -> Any:
        if self._exact is None:
            return original(**call)
        own_ids, own_weights = call["topk_ids"].clone(), call["topk_weights"].clone()
        ids, weights, *others = original(**call)
        self._num_experts = call["router_logits"].shape[-1]
        exact, flexible = self._exact, ~self._exact
        strongest = own_ids.gather(1, own_weights.argmax(1, keepdim=True).to(torch.int64))
        protected = torch.cat([own_ids[exact].flatten(), strongest[flexible].flatten()])
        lost = (own_ids[flexible, :, None] != ids[flexible, None, :]).all(2).any(1)
        self._layers.append(
            {
                "bound": len(self.routed(protected)),
                "is_kept": torch.equal(own_ids[exact], ids[exact])
                and torch.equal(own_weights[exact], weights[exact]),
                "num_changed": int(lost.sum()),
            }
        )
        return ids, weights, *others

    def dispatch(self, original: Callable[..., Any], dispatcher: Any, **call: Any) -> Any:
        if self._exact is not None:
            self._layers[-1]["num_active"] = len(self.routed(call["topk_output"].topk_ids))
        return original(dispatcher, **call)

    def routed(self, ids: torch.Tensor) -> torch.Tensor:
        """Distinct routed experts; fused shared ones and empty slots do not count."""
        distinct = ids.unique()
        return distinct[(distinct >= 0) & (distinct < self._num_experts)]
