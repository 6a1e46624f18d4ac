"""An SGLang plugin of the tests: writes down how each rank routes its rows.

In every scheduler process it appends one JSON line for each step to ``RANK_PROBE/<rank>``: phase,
checksum of the ids and weights that reached the dispatcher, which tells a rank's own experts from
the others', and T of each layer and pass.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

VARIABLE = "RANK_PROBE"
DISPATCH = "sglang.srt.layers.moe.token_dispatcher.standard.StandardDispatcher.dispatch"
STEP = "sglang.srt.managers.scheduler.Scheduler.run_batch"


def register() -> None:
    checksum, num_active = 0, []

    def dispatch(original: Callable[..., Any], dispatcher: Any, **call: Any) -> Any:
        nonlocal checksum
        routed = call["topk_output"]
        for tensor in (routed.topk_ids, routed.topk_weights):
            checksum = zlib.crc32(tensor.contiguous().numpy().tobytes(), checksum)
        num_active.append(routed.topk_ids.unique().numel())
        return original(dispatcher, **call)

    def run_step(original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any) -> Any:
        from sglang.srt.runtime_context import get_parallel

        nonlocal checksum
        checksum, num_active[:] = 0, []
        phase = batch.forward_mode.name
        result = original(scheduler, batch, *rest)
        with (Path(os.environ[VARIABLE]) / str(get_parallel().tp_rank)).open("a") as lines:
            lines.write(json.dumps([scheduler.forward_ct, phase, checksum, num_active]) + "\n")
        return result

    if VARIABLE in os.environ:
        HookRegistry.register(DISPATCH, dispatch, HookType.AROUND)
        HookRegistry.register(STEP, run_step, HookType.AROUND)
