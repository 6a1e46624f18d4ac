"""Changes of settings on a scheduler: taken or refused before its first step, as after it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt import runtime_context
from sglang.srt.configs import Qwen3NextConfig
from sglang.srt.server_args import ServerArgs
from transformers import PretrainedConfig

from lynx_sglang.cpu.runtime import CpuBuilder
from lynx_sglang.integration.state import change_settings
from lynx_sglang.settings import Settings


def change(builder: CpuBuilder, config: PretrainedConfig, **entries: float) -> bool:
    model_config = SimpleNamespace(hf_config=config, linear_attn_registry_result=None)
    controller = SimpleNamespace(scheduler=SimpleNamespace(model_config=model_config))
    request = SimpleNamespace(
        server_args={f"lynx_{name}": value for name, value in entries.items()}
    )
    taken = SimpleNamespace(updated=True)
    answer: Any = change_settings(builder)(lambda *_: taken, controller, request)
    return bool(answer.updated)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> CpuBuilder:
    """Of a server that has run no step."""
    args = ServerArgs(model_path="a-model", device="cuda", kv_canary="none")
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: args)
    made = CpuBuilder(Settings())
    sizes = {"num_experts": 64, "top_k": 4, "num_fused_shared_experts": 0}
    made.add_layer(SimpleNamespace(layer_id=0, **sizes))
    return made


def test_shadow_passes_are_taken_where_a_step_may_run_twice(builder: CpuBuilder) -> None:
    assert change(builder, PretrainedConfig(), shadow_share=0.5)
    assert builder.settings.shadow_share == 0.5
    assert not change(builder, Qwen3NextConfig(), shadow_share=0.25)
    assert "served with a-model: its recurrent layers" in str(builder.refused_change)
    assert builder.settings.shadow_share == 0.5


@pytest.mark.parametrize("entries", [{"shadow_share": 0.5}, {"max_quality_loss": 0.01}])
def test_shadow_passes_are_refused_where_sglang_would_count_both(
    builder: CpuBuilder, entries: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ServerArgs(model_path="a-model", device="cuda", expert_distribution_recorder_mode="stat")
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: args)
    assert not change(builder, PretrainedConfig(), **entries)
    assert "--expert-distribution-recorder-mode stat" in str(builder.refused_change)
    assert change(builder, PretrainedConfig(), budget=8)
