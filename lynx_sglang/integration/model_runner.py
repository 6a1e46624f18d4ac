"""The hook on SGLang's model runner: shadow passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lynx_kernels import RowClass
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.loop.shadow import compare, log_probabilities


def forward(runtime: Runtime) -> Callable[..., Any]:
    """The hook around ``ModelRunner._forward_raw``: a sampled step runs every expert first."""

    def hook(original: Callable[..., Any], *call: Any, **named: Any) -> Any:
        from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder

        step = runtime.step
        if step is None or not step.is_shadowed:
            return original(*call, **named)
        flexible = step.row_class == RowClass.FLEXIBLE
        began_s = time.monotonic()
        with runtime.all_experts(), get_global_expert_distribution_recorder().disable_this_region():
            full = log_probabilities(original(*call, **named), flexible)
        ended_s = time.monotonic()
        output = original(*call, **named)
        served_s = time.monotonic()
        step.shadow = compare(full, log_probabilities(output, flexible))
        step.shadow_ms = (ended_s - began_s + time.monotonic() - served_s) * 1e3
        return output

    return hook
