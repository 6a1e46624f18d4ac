"""The path that `select` and `fused_moe` take on fake CUDA tensors, with launches recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from lynx_kernels import RowClass, device, fused_moe, select
from lynx_kernels.fused_moe import triton_form as fused_moe_triton
from lynx_kernels.select import triton_form as select_triton

NUM_EXPERTS, TOP_K, HIDDEN, INNER = 16, 4, 32, 24
SELECT_KERNELS = ("select_kernel", "demand_kernel", "decide_kernel", "place_kernel")
FUSED_KERNELS = ("gate_up_kernel", "down_concat_kernel", "down_kernel", "combine_kernel")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the kernels that would be launched on an H100."""
    names: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda **given: names.append(self.name)

    for host, kernels in ((select_triton, SELECT_KERNELS), (fused_moe_triton, FUSED_KERNELS)):
        for name in kernels:
            monkeypatch.setattr(host, name, Recorder(name))
    sms = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: sms)
    caches = (device.arch_of, device.sm_count, device.missing_for_triton)
    for function in caches:
        function.cache_clear()
    with FakeTensorMode():
        yield names
    for function in caches:
        function.cache_clear()


def routing(
    num_rows: int, num_experts: int = NUM_EXPERTS, top_k: int = TOP_K, where: str = "cuda"
) -> dict[str, Any]:
    return {
        "scores": torch.rand(num_rows, num_experts, device=where),
        "topk_ids": torch.zeros(num_rows, top_k, dtype=torch.int32, device=where),
        "topk_weights": torch.rand(num_rows, top_k, device=where),
        "row_class": torch.full((num_rows,), int(RowClass.FLEXIBLE), device=where).byte(),
        "budget": torch.tensor(8, dtype=torch.int32, device=where),
        "floor": torch.tensor(1, dtype=torch.int32, device=where),
    }


def layer(num_rows: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    sizes = ((num_rows, HIDDEN), (NUM_EXPERTS, 2 * INNER, HIDDEN), (NUM_EXPERTS, HIDDEN, INNER))
    return [torch.empty(size, dtype=dtype, device="cuda") for size in sizes]


def test_a_decode_layer_is_three_launches(launched: list[str]) -> None:
    chosen = select(**routing(8))
    out = fused_moe(*layer(8), chosen.topk_ids, chosen.topk_weights, schedule=chosen.schedule)
    assert launched == ["select_kernel", "gate_up_kernel", "down_concat_kernel"]
    assert (out.shape, out.dtype) == ((8, HIDDEN), torch.bfloat16)


def test_large_batches_take_more_launches(launched: list[str]) -> None:
    chosen = select(**routing(300))
    fused_moe(*layer(300), chosen.topk_ids, chosen.topk_weights, schedule=chosen.schedule)
    kernels = ["demand_kernel", "decide_kernel", "place_kernel"]
    assert launched == [*kernels, "gate_up_kernel", "down_kernel", "combine_kernel"]


def test_without_a_schedule_one_is_made(launched: list[str]) -> None:
    given = routing(8)
    fused_moe(*layer(8), given["topk_ids"], given["topk_weights"])
    assert launched == ["select_kernel", "gate_up_kernel", "down_concat_kernel"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda: routing(8, num_experts=513), "513 experts and 4 slots"),
        (lambda: routing(8, top_k=17, num_experts=32), "32 experts and 17 slots"),
        (
            lambda: routing(8) | {"topk_weights": torch.rand(TOP_K, 8, device="cuda").T},
            "not contiguous",
        ),
    ],
)
def test_selection_says_why_it_runs_in_torch(
    launched: list[str],
    caplog: pytest.LogCaptureFixture,
    given: Callable[[], dict[str, Any]],
    reason: str,
) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = select(**given())
    assert reason in caplog.text
    assert launched == []
    assert chosen.schedule is None


@pytest.mark.parametrize("policy", ["lynx-v3", "sere", "random"])
def test_policies_for_comparison_run_in_torch(
    launched: list[str], caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    likeness = torch.rand(NUM_EXPERTS, NUM_EXPERTS, device="cuda")
    with caplog.at_level(logging.WARNING):
        select(**routing(8), policy=policy, similarity=likeness)
    assert f"policy {policy} has no Triton form" in caplog.text
    assert launched == []


def test_selection_runs_in_torch_without_triton(
    launched: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with caplog.at_level(logging.WARNING):
        select(**routing(8))
    assert "built for ROCm" in caplog.text
    assert launched == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hidden", {0: lambda: torch.empty(8, HIDDEN, dtype=torch.float64, device="cuda")}),
        ("w13", {1: lambda: torch.empty(NUM_EXPERTS, HIDDEN, 2 * INNER, device="cuda").mT}),
    ],
)
def test_fused_moe_refuses_what_cuda_does_not_serve(
    launched: list[str], name: str, changes: dict[int, Callable[[], Tensor]]
) -> None:
    dtype = torch.float64 if name == "hidden" else torch.float32
    given = layer(8, dtype)
    for position, make in changes.items():
        given[position] = make()
    rows = routing(8)
    with pytest.raises(ValueError, match=rf"{name}: expected .* got"):
        fused_moe(*given, rows["topk_ids"], rows["topk_weights"])


def test_a_schedule_holds_the_experts_of_the_weights(launched: list[str]) -> None:
    """Fused shared experts, and a rank's part of twice as many experts."""
    for num_routed, held in ((NUM_EXPERTS - 1, range(16)), (2 * NUM_EXPERTS, range(16, 32))):
        chosen = select(**routing(8, num_experts=num_routed), scheduled=held)
        fused_moe(*layer(8), chosen.topk_ids, chosen.topk_weights, schedule=chosen.schedule)
    assert launched == 2 * ["select_kernel", "gate_up_kernel", "down_concat_kernel"]


@pytest.mark.parametrize("held", [range(0, 16, 2), range(-1, 16), range(4, 4)])
def test_a_range_that_is_none_is_refused(held: range) -> None:
    with pytest.raises(ValueError, match=r"scheduled: expected a range .* got range"):
        select(**routing(8, where="cpu"), scheduled=held)


def test_a_schedule_without_the_shared_experts_is_refused(launched: list[str]) -> None:
    chosen = select(**routing(8, num_experts=NUM_EXPERTS - 1))  # w13 holds one expert more
    with pytest.raises(ValueError, match="schedule: expected one over the 16 experts of w13"):
        fused_moe(*layer(8), chosen.topk_ids, chosen.topk_weights, schedule=chosen.schedule)


def test_fused_moe_refuses_a_device_without_kernels(
    launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = routing(8)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(ValueError, match=r"hidden: expected .* built for ROCm"):
        fused_moe(*layer(8), rows["topk_ids"], rows["topk_weights"])


@pytest.mark.parametrize("name", ["w13_scale", "w2_scale", "is_interleaved", "schedule"])
def test_fused_moe_names_what_a_cpu_does_not_serve(name: str) -> None:
    given = [torch.zeros(2, 4), torch.zeros(3, 4, 4), torch.zeros(3, 4, 2)]
    ids, weights = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
    with pytest.raises(ValueError, match=f"{name}: expected CUDA tensors"):
        fused_moe(*given, ids, weights, **{name: torch.ones(1)})


def test_other_devices_are_refused() -> None:
    given = [torch.zeros(2, 4), torch.zeros(3, 4, 4), torch.zeros(3, 4, 2)]
    ids, weights = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
    with pytest.raises(ValueError, match="hidden: expected a tensor on a CPU or CUDA"):
        fused_moe(*(tensor.to("meta") for tensor in (*given, ids, weights)))
