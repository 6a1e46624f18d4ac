"""The layers that Lynx's kernels run on a GPU, and the reason where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.distributed.device_communicators import pynccl_allocator
from sglang.srt.layers import dp_attention
from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig
from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.runtime_context import get_parallel

from lynx_sglang.gpu import fused_runner
from lynx_sglang.gpu.fused_runner import output_of, uncovered

DEVICE = torch.device("cpu")


@pytest.fixture
def arch(monkeypatch: pytest.MonkeyPatch) -> Any:
    def of(number: int) -> None:
        monkeypatch.setattr(fused_runner, "arch_of", lambda _device: number)

    of(90)
    return of


def config(**changes: Any) -> MoeRunnerConfig:
    served = {"params_dtype": torch.bfloat16, "intermediate_size_per_partition": 768}
    return MoeRunnerConfig(**{**served, **changes})


PLAIN = object.__new__(UnquantizedFusedMoEMethod)


def fp8(**changes: Any) -> Any:
    method = object.__new__(Fp8MoEMethod)
    served = {"use_mxfp8": False, "is_fp4_expert": False, "weight_block_size": [128, 128]}
    for name, value in {**served, **changes}.items():
        setattr(method, name, value)
    return method


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"params_dtype": torch.float16},
        {"activation": "gelu_tanh"},
        {"apply_router_weight_on_input": True},
        {"routed_scaling_factor": 2.5},
        {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0},
        {"num_experts": 17, "num_local_experts": 17, "num_fused_shared_experts": 1},
        {"num_experts": 16, "num_local_experts": 8},
    ],
)
@pytest.mark.parametrize("method", [PLAIN, fp8(), fp8(weight_block_size=None)])
def test_covered(arch: Any, changes: dict[str, Any], method: Any) -> None:
    assert uncovered(method, config(**changes), DEVICE) is None


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        (PLAIN, {"params_dtype": torch.float32}, "dtype torch.float32"),
        (PLAIN, {"activation": "gelu"}, "activation gelu"),  # not the tanh form
        (PLAIN, {"is_gated": False}, "gated: False"),
        (PLAIN, {"no_combine": True}, "no_combine"),
        (PLAIN, {"swiglu_limit": 10.0}, "swiglu_limit"),
        (PLAIN, {"gemm1_alpha": 1.5, "gemm1_clamp_limit": 7.0}, "gemm1_alpha"),
        (
            PLAIN,
            {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0, "gate_up_interleaved": False},
            "do not alternate",
        ),
        (fp8(weight_block_size=[64, 128]), {}, "[64, 128] block, not 128 x 128"),
        (SimpleNamespace(), {}, "weights of SimpleNamespace"),
        (fp8(use_mxfp8=True), {}, "MXFP8"),
        (fp8(), {"intermediate_size_per_partition": 704}, "intermediate size 704"),
        (
            PLAIN,
            {"num_experts": 17, "num_local_experts": 9, "num_fused_shared_experts": 1},
            "fused shared experts",
        ),
    ],
)
def test_what_stays_with_sglang_says_why(
    arch: Any, method: Any, changes: dict[str, Any], reason: str
) -> None:
    assert reason in str(uncovered(method, config(**changes), DEVICE))


def test_old_devices_stay_with_sglang(arch: Any) -> None:
    arch(75)
    assert uncovered(PLAIN, config(), DEVICE) == "compute capability 7.5"
    arch(80)
    assert uncovered(PLAIN, config(), DEVICE) is None
    assert uncovered(fp8(), config(), DEVICE) == "compute capability 8.0"


def test_a_layers_output_lies_where_sglangs_all_reduce_reads_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    @contextmanager
    def use(group: Any, disabled: bool = False) -> Iterator[None]:
        asked.append((group, disabled))
        yield

    monkeypatch.setattr(pynccl_allocator, "use_symmetric_memory", use)
    monkeypatch.setattr(dp_attention, "is_allocation_symmetric", lambda: True)
    with get_parallel().override(tp_group="the group"):
        assert output_of(torch.ones(3, 8)).shape == (3, 8)
    assert asked == [("the group", False)]
