"""Capped prefill: ``calibrate``'s hooks in SGLang's scheduler process.

The rows of a prompt keep every expert, as in a server. The rows behind it share experts in groups
of ``rows``, as the rows of a decode step do; a group's positions are far apart. A pass with every
expert also measures the output of each, and later passes rank experts by it, as a calibrated server
does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_kernels import POLICIES, RowClass, select
from lynx_kernels.sketch import add_sketches, lost_slots
from lynx_sglang import sglang_names, sketches
from lynx_sglang.calibrate.expert_outputs import ExpertOutputs, by_slot
from lynx_sglang.calibrate.sketch_sums import SketchSums
from lynx_sglang.loop.scores import scores_of
from lynx_sglang.sketches import StandIns

STATE = "lynx_capped_prefill"
GATHER, FIT, SKETCH = "lynx_gather_sums", "lynx_fit_sketches", "lynx_use_sketches"
PROMPT = "calibration_prompt_tokens"  # of a request's custom_params
JUDGES = "calibration_judges"  # of a request's custom_params: its tokens judge sketches
DIGITS = 4  # kept of a contribution


class CappedPrefill:
    """The cap of the pass that runs, and counts of what its rows used."""

    def __init__(self) -> None:
        self.layers: set[int] = set()
        self.flexible = torch.empty(0, dtype=torch.long)  # rows behind prompts
        self.judges = torch.empty(0, dtype=torch.bool)  # of these, rows that judge sketches
        self.outputs = ExpertOutputs()  # of the last pass with every expert
        self.sums = SketchSums([])  # of the layers whose sketches are fitted next
        self.stand_ins: dict[int, StandIns] = {}
        # By layer: lost ids, the router's weights, weights after selection.
        self._lost: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
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
        self.groups, self.active, self.mass, self.covered, self.count = 0, 0.0, 0.0, 0.0, 0

    def gather(self, *, layers: list[int]) -> None:
        """Sum up the next pass with every expert for the sketches of these layers."""
        self.sums = SketchSums(layers)

    def fit(self, *, folder: str) -> None:
        """Fit sketches from the sums and write a file for each layer."""
        self.sums.fit(Path(folder))
        self.sums = SketchSums([])

    def sketch(self, *, file: str | None, digest: str = "", num_experts: int = 0) -> None:
        """Let the sketches of a file stand in for lost experts in the next passes; None: none."""
        if file is None:
            self.stand_ins = {}
        else:
            self.stand_ins = sketches.load(Path(file), digest, sorted(self.layers), num_experts)

    @property
    def is_weighing(self) -> bool:
        return POLICIES[self.policy].takes_contribution

    def before_batch(self, _scheduler: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
        """The hook before ``run_batch``: note the rows that lie behind their prompt."""
        if batch.forward_mode.is_extend():
            rows, judges = flexible_rows(batch)
            self.flexible, self.judges = torch.from_numpy(rows), torch.from_numpy(judges)

    def around_topk(self, original: Callable[..., Any], **call: Any) -> Any:
        """The hook around ``_post_process_topk_ids``."""
        self.layers.add(call["layer_id"])
        if self.kept < 1.0 and self.layer in (-1, call["layer_id"]):
            call["topk_ids"], call["topk_weights"] = self.share(call)
        return original(**call)

    def around_experts(self, original: Callable[..., Any], layer: Any, dispatch_output: Any) -> Any:
        """The hook around ``FusedMoE.run_moe_core``."""
        if self.kept >= 1.0:
            self.measure(original, layer, dispatch_output)
        lost = self._lost.pop(layer.layer_id, None)
        if lost is None:
            return original(layer, dispatch_output)
        lost_ids, weights, chosen = lost
        hidden = dispatch_output.hidden_states.clone()  # a runner may write over its input
        given = dispatch_output.topk_output.topk_weights
        sketches.require_weights(layer.moe_runner_config, chosen, given)
        output = original(layer, dispatch_output)
        factors = self.stand_ins[layer.layer_id].sketches.to(hidden.device, torch.float32)
        add_sketches(output.hidden_states, hidden, lost_ids, weights, factors)
        return output

    def measure(self, original: Callable[..., Any], layer: Any, dispatch_output: Any) -> None:
        """Note what each expert puts out for the rows behind prompts."""
        if not (self.is_weighing and len(self.flexible)):
            return
        config = layer.moe_runner_config
        num_experts = config.num_experts - (config.num_fused_shared_experts or 0)
        rows = self.flexible.to(dispatch_output.hidden_states.device)
        x = dispatch_output.hidden_states[rows]
        for slot in by_slot(original, layer, dispatch_output):
            ids, weights, outputs = (each[rows] for each in slot)
            self.outputs.note(layer.layer_id, num_experts, ids, weights, outputs)
            self.sums.note(layer.layer_id, num_experts, x, ids, weights, outputs, self.judges)

    def share(self, call: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and weights [M, K] of one layer after selection, group by group."""
        scores = scores_of(call["router_logits"], call["topk_config"])()
        ids, weights = call["topk_ids"].clone(), call["topk_weights"].clone()
        device, flexible = ids.device, self.flexible.to(ids.device)
        floor = torch.tensor(1, dtype=torch.int32, device=device)
        policy, stand_ins = POLICIES[self.policy], self.stand_ins.get(call["layer_id"])
        contribution = None
        if stand_ins is not None:
            policy = replace(policy, is_refilling=False)
            contribution = stand_ins.contribution.to(device)
        elif self.is_weighing and call["layer_id"] in self.outputs.layer_ids:
            contribution = self.outputs.contributions(call["layer_id"]).to(device)
        apart = -(-len(flexible) // self.rows)
        for first in range(apart):
            group = flexible[first::apart]
            classes = torch.full_like(group, int(RowClass.FLEXIBLE), dtype=torch.uint8)
            cap = max(1, round(self.kept * ids[group].unique().numel()))
            chosen = select(
                scores[group], ids[group], weights[group], classes,
                budget=torch.tensor(cap, dtype=torch.int32, device=device), floor=floor,
                policy=policy,
                correction_bias=call["topk_config"].correction_bias,
                contribution=contribution,
            )  # fmt: skip
            covered = chosen.retained_mass
            if stand_ins is not None:
                lost = lost_slots(ids[group], chosen.topk_ids)
                is_routed = (ids[group] >= 0) & (ids[group] < scores.shape[1])
                masses = weights[group].masked_fill(~is_routed, 0.0)
                covered = stand_ins.covered(covered.cpu(), masses.cpu(), lost.cpu())
            ids[group], weights[group] = chosen.topk_ids, chosen.topk_weights
            self.groups += 1
            self.active += float(chosen.num_active)
            self.mass += float(chosen.retained_mass.sum())
            self.covered += float(covered.sum())
            self.count += len(group)
        if stand_ins is not None:
            own = call["topk_weights"]
            self._lost[call["layer_id"]] = lost_slots(call["topk_ids"], ids), own, weights
        return ids, weights

    def add_state(self, output: Any, _controller: Any, _request: Any) -> None:
        """The hook after ``get_internal_state``."""
        output.internal_state[STATE] = {
            "layers": sorted(self.layers),
            "active_experts": self.active / self.groups if self.groups else None,
            "retained_mass": self.mass / self.count if self.count else None,
            "covered_mass": self.covered / self.count if self.count else None,
            "contributions": self.listed() if self.is_weighing else None,
        }

    def listed(self) -> list[list[float]]:
        """Contributions [L][E] of the layers measured so far."""
        outputs = self.outputs
        layers = [outputs.contributions(layer).tolist() for layer in outputs.layer_ids]
        return [[round(each, DIGITS) for each in layer] for layer in layers]


def flexible_rows(batch: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows [N] int64 of a prefill's tokens behind their prompts, and whether each judges, bool [N].

    A request that does not say how long its prompt is has no other tokens.
    """
    rows, judges, first = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.bool_)], 0
    for request, start, length in zip(
        batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True
    ):
        params = request.sampling_params.custom_params or {}
        prompt = params.get(PROMPT, start + length)
        rows.append(np.arange(first + min(max(prompt - start, 0), length), first + length))
        judges.append(np.full(len(rows[-1]), params.get(JUDGES, False)))
        first += length
    return np.concatenate(rows), np.concatenate(judges)


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
    for method, call in (
        (STATE, prefill.set),
        (GATHER, prefill.gather),
        (FIT, prefill.fit),
        (SKETCH, prefill.sketch),
    ):
        setattr(Scheduler, method, staticmethod(call))
    run_scheduler_process(*args, **kwargs)
