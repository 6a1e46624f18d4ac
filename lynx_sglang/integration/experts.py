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


def bind_backend(original: Callable[..., None], topk: Any, *rest: Any, **named: Any) -> None:
    """The hook around ``TopK.bind_runner_backend``: refuse layers whose routing is out of reach.

    Raises:
        UnsupportedError: the layer's runner routes inside its kernel.
    """
    from sglang.srt.layers.moe.topk import TopKOutputFormat

    original(topk, *rest, **named)
    config = topk.topk_config
    if config.output_format is not TopKOutputFormat.STANDARD:
        name = "none" if config.runner_backend is None else config.runner_backend.value
        raise UnsupportedError(
            f"--moe-backend lynx: MoE layer {topk.layer_id}: the runner {name} routes inside its "
            f"kernel ({config.output_format.name}), where lynx cannot select. "
            "Choose another --moe-runner-backend, or none."
        )
