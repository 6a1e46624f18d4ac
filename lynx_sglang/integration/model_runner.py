"""The hooks on the model runner: shadow passes, and the capture of graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lynx_controller import Phase
from lynx_sglang.integration import proof
from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.runtime import Runtime

if TYPE_CHECKING:
    from lynx_sglang.gpu.runtime import GpuBuilder

logger = logging.getLogger(__name__)


def forward(builder: Builder[Runtime]) -> Callable[..., Any]:
    """The hook around ``ModelRunner._forward_raw``: a sampled step runs twice."""

    def hook(original: Callable[..., Any], *call: Any, **named: Any) -> Any:
        runtime = builder.runtime
        if runtime is None or runtime.step is None or not runtime.step.is_shadowed:
            return original(*call, **named)
        return runtime.run_twice(runtime.step, lambda: original(*call, **named))

    return hook


def capture(builder: GpuBuilder) -> Callable[..., None]:
    """The hook around ``DecodeCudaGraphRunner.capture``: every size records its selection."""

    def hook(original: Callable[..., None], graph_runner: Any) -> None:
        builder.note_decode_graphs(graph_runner.capture_bs)
        runtime = builder.start()
        with runtime.capturing():
            original(graph_runner)
        runtime.require_selection(builder.size_classes)
        proof.require_hooks()
        logger.info(
            "lynx selects in %d MoE layers of %d captured sizes, and all its hooks are in place",
            len(runtime.layers),
            len(builder.size_classes),
        )

    return hook


def capture_prefill(builder: GpuBuilder) -> Callable[..., None]:
    """The hook around ``PrefillCudaGraphRunner.capture``: mixed steps replay these graphs, too."""

    def hook(original: Callable[..., None], graph_runner: Any) -> None:
        from sglang.srt.runtime_context import get_server_args

        if not get_server_args().enable_mixed_chunk:
            original(graph_runner)
            return
        builder.prefill_sizes = tuple(graph_runner.capture_num_tokens)
        runtime = builder.start()
        with runtime.capturing(Phase.MIXED):
            original(graph_runner)
        runtime.require_selection(builder.prefill_sizes)
        logger.info("lynx selects in mixed steps of %d captured sizes", len(builder.prefill_sizes))

    return hook
