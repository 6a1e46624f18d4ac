"""MoE layers and routings of the GPU checks and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SHARES = (1.0, 0.75, 0.5, 0.25)
FIXED_TARGETS = (16, 32)
POPULARITY_SPREAD = 0.7  # standard deviation of an expert's log popularity


@dataclass(frozen=True, slots=True)
class Shape:
    """One MoE layer on one GPU."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    activation: str = "silu"
    has_bias: bool = False
    is_interleaved: bool = False
    scaled: str = ""  # what an fp8 scale is of: "block", "row" or "expert"; "": no fp8 weights

    def in_fp8(self, scaled: str) -> Shape:
        return replace(self, name=f"{self.name}-fp8{scaled}", scaled=scaled)

    @property
    def fits_tma(self) -> bool:
        """Whether tiles with `is_tma` serve it, from sm_90: rows of weights are aligned."""
        sizes = (self.hidden_size, self.intermediate_size)
        return not self.is_interleaved and all(size % 16 == 0 for size in sizes)

    @property
    def element_bytes(self) -> int:
        """Of the weights; activations have two."""
        return 1 if self.scaled else 2

    @property
    def expert_bytes(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size * self.element_bytes

    def layer_bytes(self, num_rows: int, num_active: float) -> float:
        """The least bytes to move: weights of the active experts, rows in and out, activations."""
        rows = num_rows * self.hidden_size * 2 * 2
        inner = num_rows * self.top_k * self.intermediate_size * 2 * 2
        return num_active * self.expert_bytes + rows + inner


QWEN3_30B = Shape("qwen3-30b", 2048, 768, 128, 8)
MIXTRAL_TP2 = Shape("mixtral-tp2", 4096, 7168, 8, 2)
SHAPES = {
    shape.name: shape
    for shape in (
        QWEN3_30B,
        QWEN3_30B.in_fp8("block"),
        Shape("qwen3-235b-tp8", 4096, 192, 128, 8),
        MIXTRAL_TP2,
        Shape("deepseek-v2-lite", 2048, 1408, 64, 6),
        Shape("gpt-oss-120b", 2880, 2880, 128, 4, "swiglu_clamped", True, True),
        Shape("qwen2-57b", 3584, 2560, 64, 8),
        QWEN3_30B.in_fp8("row"),
        MIXTRAL_TP2.in_fp8("block"),
    )
}
TINY = Shape("tiny", 64, 48, 16, 4)


def logits_of(shape: Shape, num_rows: int, seed: int = 0) -> Tensor:
    """Router logits [M, E] on the CPU: each expert's log popularity plus Gumbel noise.

    Popularity is normal with POPULARITY_SPREAD: the union of top-k choices is then a tenth
    below that of even routing.
    """
    rng = torch.Generator().manual_seed(seed)
    popularity = POPULARITY_SPREAD * torch.randn(shape.num_experts, generator=rng)
    uniform = torch.rand(num_rows, shape.num_experts, generator=rng).clamp_min(1e-9)
    return popularity - torch.log(-torch.log(uniform))


def route(shape: Shape, num_rows: int, share: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """topk_ids int32 [M, K] and topk_weights float32 [M, K] of a skewed router, on the CPU.

    At share < 1, all rows choose among that share of the uncapped T, the most wanted experts.
    """
    logits = logits_of(shape, num_rows, seed)
    ids = logits.topk(shape.top_k, dim=1).indices
    votes = ids.flatten().bincount(minlength=shape.num_experts)
    num_active = active_target(int((votes > 0).sum()), share, shape.top_k)
    is_allowed = torch.zeros(shape.num_experts, dtype=torch.bool)
    is_allowed[votes.argsort(descending=True, stable=True)[:num_active]] = True
    top = logits.masked_fill(~is_allowed, float("-inf")).topk(shape.top_k, dim=1)
    return top.indices.int(), top.values.softmax(dim=1)


def active_target(uncapped: int, share: float, top_k: int) -> int:
    """T at a share of the uncapped T; rows need K distinct experts."""
    return min(uncapped, max(top_k, round(share * uncapped)))


def targets_of(shape: Shape, uncapped: int) -> list[int]:
    """The T that are measured of a batch, largest first: shares of its union, and the bars' own."""
    shares = {active_target(uncapped, share, shape.top_k) for share in SHARES}
    fixed = {target for target in FIXED_TARGETS if shape.top_k <= target < uncapped}
    return sorted(shares | fixed, reverse=True)


def expected_union(shape: Shape, num_rows: int) -> float:
    """Active experts of a batch under the skewed router, mean of a few draws."""
    counts = [int(route(shape, num_rows, seed=seed)[0].unique().numel()) for seed in range(8)]
    return sum(counts) / len(counts)
