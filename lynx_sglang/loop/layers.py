"""A model's MoE layers, which all have one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lynx_sglang.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class MoeLayers:
    ids: list[int]  # SGLang's layer ids, ascending
    num_experts: int  # E, routed
    top_k: int  # routed

    @classmethod
    def of(cls, configs: Sequence[Any]) -> MoeLayers:
        """From SGLang's ``MoeRunnerConfig`` of each layer; fused shared experts don't count."""
        if not configs:
            return cls([], 0, 0)
        sizes = {(each.num_experts, each.top_k, each.num_fused_shared_experts) for each in configs}
        if len(sizes) > 1 or len({config.layer_id for config in configs}) < len(configs):
            raise UnsupportedError(
                "--moe-backend lynx: this model's MoE layers differ in experts or top-k, or a "
                "layer has several sets of experts. Serve it without --moe-backend lynx."
            )
        shared = configs[-1].num_fused_shared_experts or 0
        return cls(
            sorted(config.layer_id for config in configs),
            configs[-1].num_experts - shared,
            configs[-1].top_k - shared,
        )

    def __len__(self) -> int:
        return len(self.ids)
