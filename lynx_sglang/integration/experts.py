"""The hooks on SGLang's MoE layers as the model is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lynx_sglang.errors import UnsupportedError
from lynx_sglang.settings import BACKEND


def create_moe_runner(
    _original: Callable[..., None], method: Any, layer: Any, moe_runner_config: Any
) -> None:
    """The hook around ``UnquantizedFusedMoEMethod.create_moe_runner``: make Lynx's runner."""
    from sglang.srt.layers.moe.moe_runner.runner import MoeRunner
    from sglang.srt.layers.moe.utils import resolve_moe_runner_backend

    method.moe_runner_config = moe_runner_config
    method.runner = MoeRunner(resolve_moe_runner_backend(BACKEND), moe_runner_config)


def around_init(note: Callable[[Any], None]) -> Callable[..., None]:
    """The hook around ``FusedMoE.__init__``: call ``note`` with each layer that is built."""

    def hook(original: Callable[..., None], layer: Any, *rest: Any, **named: Any) -> None:
        original(layer, *rest, **named)
        note(layer)

    return hook


def topk_init(note: Callable[[int, int], None]) -> Callable[..., None]:
    """The hook around ``TopK.__init__``: call ``note`` with each router's layer and top-k."""

    def hook(original: Callable[..., None], topk: Any, *rest: Any, **named: Any) -> None:
        original(topk, *rest, **named)
        note(topk.layer_id, topk.topk_config.top_k)

    return hook


def bind_backend(
    original: Callable[..., None], topk: Any, runner_backend: Any, **named: Any
) -> None:
    """The hook around ``TopK.bind_runner_backend``: refuse layers whose routing is out of reach.

    Raises:
        UnsupportedError: the layer's runner routes inside its kernel.
    """
    original(topk, runner_backend, **named)
    name = "none" if runner_backend is None else runner_backend.value
    refuse_other_than_standard(topk, topk.topk_config.output_format, f"the runner {name}")


def topk_forward(original: Callable[..., Any], topk: Any, *rest: Any, **named: Any) -> Any:
    """The hook around ``TopK.forward_cuda``, which chooses the format itself in SGLang 0.5.22.

    Raises:
        UnsupportedError: the layer's runner routes inside its kernel.
    """
    routing = original(topk, *rest, **named)
    refuse_other_than_standard(topk, routing.format, "its runner")
    return routing


def refuse_other_than_standard(topk: Any, output_format: Any, runner: str) -> None:
    from sglang.srt.layers.moe.topk import TopKOutputFormat

    if output_format is not TopKOutputFormat.STANDARD:
        raise UnsupportedError(
            f"--moe-backend lynx: MoE layer {topk.layer_id}: {runner} routes inside its "
            f"kernel ({output_format.name}), where lynx cannot select. "
            "Choose another --moe-runner-backend, or none."
        )
