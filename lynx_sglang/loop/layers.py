"""A model's MoE layers, which all have one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lynx_sglang.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class MoeLayers:
    ids: list[int]  # SGLang's layer ids, ascending
    num_experts: int  # E, routed
    top_k: int  # routed

    @classmethod
    def of(cls, configs: Sequence[Any], routed: Mapping[int, int]) -> MoeLayers:
        """From SGLang's ``MoeRunnerConfig`` of each layer; fused shared experts don't count.

        ``routed``: top-k of each layer's router, by layer id, where the configuration lacks it.
        """
        if not configs:
            return cls([], 0, 0)
        sizes = {
            (
                each.num_experts,
                routed.get(each.layer_id) if each.top_k is None else each.top_k,
                each.num_fused_shared_experts,
            )
            for each in configs
        }
        if len(sizes) > 1 or len({config.layer_id for config in configs}) < len(configs):
            raise UnsupportedError(
                "--moe-backend lynx: this model's MoE layers differ in experts or top-k, or a "
                "layer has several sets of experts. Serve it without --moe-backend lynx."
            )
        ((num_experts, top_k, shared),) = sizes
        if top_k is None:
            raise UnsupportedError(
                "--moe-backend lynx: this model's MoE layers have no SGLang router. "
                "Serve it without --moe-backend lynx."
            )
        shared = shared or 0
        return cls(
            sorted(config.layer_id for config in configs), num_experts - shared, top_k - shared
        )

    def __len__(self) -> int:
        return len(self.ids)
