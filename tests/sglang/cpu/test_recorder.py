"""SGLang's expert recorder where no step is captured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lynx_sglang.cpu.recorder import while_recording


@pytest.mark.parametrize("recording", [False, True])
def test_only_a_started_recorder_is_asked(recording: bool) -> None:
    seen: list[Any] = []
    recorder = SimpleNamespace(recording=recording)
    hook = while_recording(lambda *call, **named: seen.append((call, named)))
    hook(recorder, "on_select_experts", topk_ids=[1])
    expected = [((recorder, "on_select_experts"), {"topk_ids": [1]})]
    assert seen == (expected if recording else [])
