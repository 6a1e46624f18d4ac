"""The kernel launches of a batch, recorded on meta tensors by calling the host functions.

So what is compiled ahead of time, or for another device, is what runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton

from benchmarks.gpu.shapes import SHAPES, Shape
from lynx_kernels.fused_moe import SCALE_BLOCK, tuning
from lynx_kernels.fused_moe import triton_form as fused_host
from lynx_kernels.fused_moe.tuning import Layer, Tiles
from lynx_kernels.fused_moe.workspace import Workspace
from lynx_kernels.schedule import Schedule
from lynx_kernels.select import triton_form as select_host
from lynx_kernels.select.policies import POLICIES

NUM_SMS = {80: 108, 90: 132, 100: 148}
FUSED_KERNELS = ("gate_up_kernel", "down_concat_kernel", "down_kernel", "combine_kernel")
SELECT_KERNELS = ("select_kernel", "demand_kernel", "decide_kernel", "place_kernel")
WITH_TMA = ("qwen3-30b", "qwen3-30b-fp8block")  # layers that are compiled in that form, too
# (M, E, K): one program, several, and three launches
SELECT_SLOTS = (
    (8, 128, 8),
    (16, 64, 4),
    (64, 128, 8),
    (64, 256, 8),
    (8, 512, 8),
    (256, 512, 8),
    (300, 128, 8),
)
# Two launches: decode steps above 256 rows, and mixed ones.
UNSCHEDULED_SLOTS = ((512, 128, 8), (1024, 512, 10), (8192, 256, 8))


@dataclass(frozen=True)
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **given: self.launches.append(Launch(self.kernel, grid, given))


@contextmanager
def recorded(host: ModuleType, kernels: tuple[str, ...]) -> Iterator[list[Launch]]:
    launches: list[Launch] = []
    recorders: dict[str, Any] = {name: Recorder(getattr(host, name), launches) for name in kernels}
    with mock.patch.multiple(host, **recorders):
        yield launches


def meta(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Variant:
    """The fused MoE of a batch size of a layer on an architecture."""

    shape: Shape
    slot: int
    arch: int
    num_prefetched: int = 0  # this and the next: knobs of the sweep, which no rule sets
    is_tma: bool = False

    @property
    def name(self) -> str:
        prefetch = f"-prefetch{self.num_prefetched}" if self.num_prefetched else ""
        return f"{self.shape.name}{prefetch}{'-tma' if self.is_tma else ''}"

    @property
    def size(self) -> str:
        return str(self.slot)

    @property
    def layer(self) -> Layer:
        return Layer(
            arch=self.arch,
            element_bytes=self.shape.element_bytes,
            hidden_size=self.shape.hidden_size,
            intermediate_size=self.shape.intermediate_size,
            num_experts=self.shape.num_experts,
        )

    @property
    def tiles(self) -> Tiles:
        tiles = tuning.tiles_for(self.layer, tuning.size_class_of(self.slot))
        return replace(
            tiles,
            num_prefetched=self.num_prefetched or tiles.num_prefetched,
            is_tma=self.is_tma or tiles.is_tma,
        )

    def programs_per_sm(self, kernel: str) -> int:
        return {
            "gate_up_kernel": self.tiles.gate_up.programs_per_sm,
            "down_concat_kernel": min(self.tiles.down.programs_per_sm, tuning.MAX_SPLIT_PROGRAMS),
            "down_kernel": self.tiles.down.programs_per_sm,
        }.get(kernel, 1)

    def record(self) -> list[Launch]:
        """The launches of one batch as large as the slot allows."""
        shape = self.shape
        num_experts, hidden, inner = shape.num_experts, shape.hidden_size, shape.intermediate_size
        weight_type = torch.float8_e4m3fn if shape.scaled else torch.bfloat16

        def scale(*sizes: int) -> torch.Tensor | None:
            if not shape.scaled:
                return None
            blocks = [triton.cdiv(size, SCALE_BLOCK) for size in sizes]
            scaled = {"block": blocks, "row": sizes[:1], "expert": ()}[shape.scaled]
            return meta(num_experts, *scaled, dtype=torch.float32)

        num_pairs = self.slot * shape.top_k
        integers = {"num_active": 1, "experts": num_experts, "counts": num_experts}
        integers |= {"offsets": num_experts, "tokens": num_pairs}
        schedule = Schedule(
            **{name: meta(size, dtype=torch.int32) for name, size in integers.items()},
            weights=meta(num_pairs, dtype=torch.float32),
            slots=meta(self.slot, shape.top_k, dtype=torch.int32),
        )
        workspace = Workspace(
            layer=self.layer,
            num_sms=NUM_SMS.get(self.arch, 132),
            max_rows=self.slot,
            top_k=shape.top_k,
            inner=meta(num_pairs, inner),
            sums=meta(1, 1, dtype=torch.float32),
            arrivals=meta(1, dtype=torch.int32),
        )
        tiles = {(self.layer, tuning.size_class_of(self.slot)): self.tiles}
        with (
            recorded(fused_host, FUSED_KERNELS) as launches,
            mock.patch.dict(tuning.TABLE, tiles),
        ):
            fused_host.fused_moe_triton(
                meta(self.slot, hidden),
                meta(num_experts, 2 * inner, hidden, dtype=weight_type),
                meta(num_experts, hidden, inner, dtype=weight_type),
                schedule,
                workspace=workspace,
                activation=shape.activation,
                is_interleaved=shape.is_interleaved,
                w13_scale=scale(2 * inner, hidden),
                w2_scale=scale(hidden, inner),
                w13_bias=meta(num_experts, 2 * inner) if shape.has_bias else None,
                w2_bias=meta(num_experts, hidden) if shape.has_bias else None,
            )
        return launches


@dataclass(frozen=True)
class SelectVariant:
    """`select` of a batch size of a router on an architecture."""

    num_rows: int
    num_experts: int
    top_k: int
    arch: int
    policy: str = "lynx"
    is_scheduled: bool = True

    @property
    def name(self) -> str:
        return "select" if self.is_scheduled else "select-alone"

    @property
    def size(self) -> str:
        return f"{self.num_rows},{self.num_experts},{self.top_k}"

    def programs_per_sm(self, kernel: str) -> int:
        return 1

    def record(self) -> list[Launch]:
        with (
            recorded(select_host, SELECT_KERNELS) as launches,
            mock.patch.object(select_host, "arch_of", return_value=self.arch),
        ):
            select_host.select_triton(
                meta(self.num_rows, self.num_experts),
                meta(self.num_rows, self.top_k, dtype=torch.int32),
                meta(self.num_rows, self.top_k, dtype=torch.float32),
                meta(self.num_rows, dtype=torch.uint8),
                budget=meta(dtype=torch.int32),
                floor=meta(dtype=torch.int32),
                demand=meta(dtype=torch.float32),
                policy=POLICIES[self.policy],
                correction_bias=None,
                scoring="softmax",
                scheduled=range(self.num_experts) if self.is_scheduled else None,
            )
        return launches


def parse(text: str) -> Variant | SelectVariant:
    """model[-fp8block|-fp8row|-fp8expert][-prefetchN][-tma]:slot:arch or
    select[-alone]:M,E,K:arch
    """
    name, size, arch = text.split(":")
    if name in ("select", "select-alone"):
        num_rows, num_experts, top_k = map(int, size.split(","))
        is_scheduled = name == "select"
        return SelectVariant(num_rows, num_experts, top_k, int(arch), is_scheduled=is_scheduled)
    is_tma = name.endswith("-tma")
    name, _, prefetched = name.removesuffix("-tma").partition("-prefetch")
    name, _, scaled = name.partition("-fp8")
    shape = SHAPES[name].in_fp8(scaled) if scaled else SHAPES[name]
    return Variant(shape, int(size), int(arch), int(prefetched or 0), is_tma)


def all_variants() -> list[Variant | SelectVariant]:
    return [
        *(SelectVariant(*sizes, arch) for arch in NUM_SMS for sizes in SELECT_SLOTS),
        *(
            SelectVariant(*sizes, arch, is_scheduled=False)
            for arch in NUM_SMS
            for sizes in UNSCHEDULED_SLOTS
        ),
        *(
            Variant(shape, slot, arch, is_tma=is_tma)
            for arch in NUM_SMS
            for is_tma in (False, True)
            for shape in SHAPES.values()
            for slot in tuning.SIZE_CLASSES
            if arch >= (89 if shape.scaled else 80)
            if not is_tma or (arch >= 90 and shape.name in WITH_TMA)
        ),
    ]
