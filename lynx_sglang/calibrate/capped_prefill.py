"""Capped prefill: ``calibrate``'s hooks in SGLang's scheduler process.

The rows of a prompt keep every expert, as in a server. The rows behind it share experts in groups
of ``rows``, as the rows of a decode step do; a group's positions are far apart. A pass with every
expert also measures the output of each, and later passes rank experts by it, as a calibrated server
does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lynx_kernels import POLICIES, RowClass, select
from lynx_sglang import sglang_names
from lynx_sglang.calibrate.expert_outputs import ExpertOutputs, by_slot
from lynx_sglang.loop.scores import scores_of

STATE = "lynx_capped_prefill"
PROMPT = "calibration_prompt_tokens"  # of a request's custom_params
DIGITS = 4  # kept of a contribution


class CappedPrefill:
    """The cap of the pass that runs, and counts of what its rows used."""

    def __init__(self) -> None:
        self.layers: set[int] = set()
        self.flexible = torch.empty(0, dtype=torch.long)  # rows behind prompts
        self.outputs = ExpertOutputs()  # of the last pass with every expert
        self.set(share=1.0, layer=-1, rows=1, policy="lynx")

    def set(self, *, share: float, layer: int, rows: int, policy: str) -> None:
        """Set the cap of the next pass and start counting anew.

        Args:
            share: of the experts that a group would use uncapped; 1: no cap.
            layer: id of the only layer that is capped; -1: all layers are.
            rows: of a group.
        """
        if share >= 1.0:
            self.outputs = ExpertOutputs()
        self.kept, self.layer, self.rows, self.policy = share, layer, rows, policy
        self.groups, self.active, self.mass, self.count = 0, 0.0, 0.0, 0

    @property
    def is_weighing(self) -> bool:
        return POLICIES[self.policy].takes_contribution

    def before_batch(self, _scheduler: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
        """The hook before ``run_batch``: note the rows that lie behind their prompt."""
        if batch.forward_mode.is_extend():
            self.flexible = torch.from_numpy(flexible_rows(batch))

    def around_topk(self, original: Callable[..., Any], **call: Any) -> Any:
        """The hook around ``_post_process_topk_ids``."""
        self.layers.add(call["layer_id"])
        if self.kept < 1.0 and self.layer in (-1, call["layer_id"]):
            call["topk_ids"], call["topk_weights"] = self.share(call)
        return original(**call)

    def around_experts(self, original: Callable[..., Any], layer: Any, dispatch_output: Any) -> Any:
        """The hook around ``FusedMoE.run_moe_core``."""
        if self.kept >= 1.0 and self.is_weighing and len(self.flexible):
            config = layer.moe_runner_config
            num_experts = config.num_experts - (config.num_fused_shared_experts or 0)
            rows = self.flexible.to(dispatch_output.hidden_states.device)
            for slot in by_slot(original, layer, dispatch_output):
                self.outputs.note(layer.layer_id, num_experts, *(each[rows] for each in slot))
        return original(layer, dispatch_output)

    def share(self, call: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and weights [M, K] of one layer after selection, group by group."""
        scores = scores_of(call["router_logits"], call["topk_config"])()
        ids, weights = call["topk_ids"].clone(), call["topk_weights"].clone()
        device, flexible = ids.device, self.flexible.to(ids.device)
        floor = torch.tensor(1, dtype=torch.int32, device=device)
        contribution = None
        if self.is_weighing and call["layer_id"] in self.outputs.layer_ids:
            contribution = self.outputs.contributions(call["layer_id"]).to(device)
        apart = -(-len(flexible) // self.rows)
        for first in range(apart):
            group = flexible[first::apart]
            classes = torch.full_like(group, int(RowClass.FLEXIBLE), dtype=torch.uint8)
            cap = max(1, round(self.kept * ids[group].unique().numel()))
            chosen = select(
                scores[group], ids[group], weights[group], classes,
                budget=torch.tensor(cap, dtype=torch.int32, device=device), floor=floor,
                policy=self.policy,
                correction_bias=call["topk_config"].correction_bias,
                contribution=contribution,
            )  # fmt: skip
            ids[group], weights[group] = chosen.topk_ids, chosen.topk_weights
            self.groups += 1
            self.active += float(chosen.num_active)
            self.mass += float(chosen.retained_mass.sum())
            self.count += len(group)
        return ids, weights

    def add_state(self, output: Any, _controller: Any, _request: Any) -> None:
        """The hook after ``get_internal_state``."""
        output.internal_state[STATE] = {
            "layers": sorted(self.layers),
            "active_experts": self.active / self.groups if self.groups else None,
            "retained_mass": self.mass / self.count if self.count else None,
            "contributions": self.listed() if self.is_weighing else None,
        }

    def listed(self) -> list[list[float]]:
        """Contributions [L][E] of the layers measured so far."""
        outputs = self.outputs
        layers = [outputs.contributions(layer).tolist() for layer in outputs.layer_ids]
        return [[round(each, DIGITS) for each in layer] for layer in layers]


def flexible_rows(batch: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Row numbers [M] of a prefill's tokens behind their prompts.

    A request that does not say how long its prompt is has no other tokens.
    """
    found, first = [np.empty(0, dtype=np.int64)], 0
    for request, start, length in zip(
        batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True
    ):
        params = request.sampling_params.custom_params or {}
        prompt = params.get(PROMPT, start + length)
        found.append(np.arange(first + min(max(prompt - start, 0), length), first + length))
        first += length
    return np.concatenate(found)


def scheduler_process(*args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler process with a ``CappedPrefill`` that the launcher sets by RPC."""
    from sglang.srt.managers.scheduler import Scheduler, run_scheduler_process
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    prefill = CappedPrefill()
    for name, hook, kind in (
        (sglang_names.RUN_BATCH, prefill.before_batch, HookType.BEFORE),
        (sglang_names.POST_PROCESS_TOPK, prefill.around_topk, HookType.AROUND),
        (sglang_names.RUN_EXPERTS, prefill.around_experts, HookType.AROUND),
        (sglang_names.GET_STATE, prefill.add_state, HookType.AFTER),
    ):
        HookRegistry.register(name.hook_path, hook, kind)
    setattr(Scheduler, STATE, staticmethod(prefill.set))
    run_scheduler_process(*args, **kwargs)
