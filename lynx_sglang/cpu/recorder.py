"""SGLang's expert distribution recorder for the CPU platform, where no graph is captured.

In a layer that it does not record, SGLang's own asks CUDA whether a graph is being captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def while_recording(original: Callable[..., None]) -> Callable[..., None]:
    """A form of ``_on_hook`` that does nothing unless the recorder was started."""

    def on_hook(self: Any, hook_name: str, **kwargs: Any) -> None:
        if self.recording:
            original(self, hook_name, **kwargs)

    return on_hook


def install() -> None:
    from sglang.srt.eplb.expert_distribution import _ExpertDistributionRecorderReal as Recorder

    Recorder._on_hook = while_recording(Recorder._on_hook)
