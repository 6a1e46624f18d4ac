"""Selection in SGLang's routing: after top-k, before pad masks, EPLB remap and capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softplus

if TYPE_CHECKING:
    from lynx_sglang.loop.runtime import Runtime

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1, dtype=torch.float32),
    "sigmoid": lambda logits: torch.sigmoid(logits.float()),
    "sqrtsoftplus": lambda logits: softplus(logits.float()).sqrt(),
}


def post_process_topk(runtime: Runtime) -> Callable[..., Any]:
    """The hook around ``_post_process_topk_ids``, which SGLang calls with keywords only."""

    def hook(original: Callable[..., Any], **call: Any) -> Any:
        selection = runtime.select(
            call["layer_id"],
            call["topk_ids"],
            call["topk_weights"],
            lambda: scores_of(call["router_logits"], call["topk_config"]),
            call["topk_config"].correction_bias,
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


def scores_of(router_logits: torch.Tensor, topk_config: Any) -> torch.Tensor:
    """Router scores [M, E] float32, as the model's own top-k sees them before any bias.

    A biased grouped router is a sigmoid whatever its ``scoring_func`` says. A custom routing
    function hides its scores; softmax keeps the order of the logits, which is what refills need.
    """
    is_biased_group = topk_config.use_grouped_topk and topk_config.correction_bias is not None
    is_custom = topk_config.custom_routing_function is not None
    name = "sigmoid" if is_biased_group else topk_config.scoring_func
    return SCORES["softmax" if is_custom else name](router_logits)
