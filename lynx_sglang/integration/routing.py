"""The hook on SGLang's routing: selection after top-k, before pad masks, EPLB remap and capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.loop.scores import scores_of


def post_process_topk(builder: Builder[Runtime]) -> Callable[..., Any]:
    """The hook around ``_post_process_topk_ids``, which SGLang calls with keywords only."""

    def hook(original: Callable[..., Any], **call: Any) -> Any:
        runtime = builder.runtime
        if runtime is None:
            return original(**call)
        bias = call["topk_config"].correction_bias
        selection = runtime.select(
            call["layer_id"],
            call["topk_ids"],
            call["topk_weights"],
            scores_of(call["router_logits"], call["topk_config"]),
            None if bias is None else bias.view(-1),  # Ernie's is [1, E]
            is_final=is_final(call),
        )
        if selection is not None:
            call["topk_ids"], call["topk_weights"] = selection
        return original(**call)

    return hook


def is_final(call: dict[str, Any]) -> bool:
    """Whether SGLang leaves ids and weights of live rows as selection makes them."""
    is_remapped = call.get("expert_location_dispatch_info") is not None
    factor = call["topk_config"].fused_shared_experts_scaling_factor
    return not is_remapped and factor in (None, 1)
