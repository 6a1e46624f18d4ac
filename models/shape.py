"""The sizes of a model, and those of the models in this folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grouping:
    """A sigmoid router with a correction bias, as in DeepSeek-V3 (arXiv 2412.19437, 2.1.2).

    The experts lie in `groups` of equal size; a token may use those of its best `kept_groups`.
    What the routed experts give is multiplied by `scale` and added to the shared experts' output.
    """

    groups: int
    kept_groups: int
    scale: float

    def __post_init__(self) -> None:
        if not 1 <= self.kept_groups <= self.groups:
            raise ValueError(f"kept_groups must be in 1..{self.groups}, got {self.kept_groups!r}")
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale!r}")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model; the defaults are those of lynx-moe-tiny.

    `grouping` None is a softmax router. The first `dense_layers` have one SwiGLU of inner size
    `dense_inner` instead of experts; `shared_experts` of inner size `inner` serve every token.
    """

    vocabulary: int = 640
    layers: int = 8
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 64
    top_k: int = 4
    inner: int = 48
    positions: int = 1024
    rope_theta: float = 10000.0
    epsilon: float = 1e-6
    grouping: Grouping | None = None
    shared_experts: int = 0
    dense_layers: int = 0
    dense_inner: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dense_layers < self.layers:
            raise ValueError(
                f"dense_layers must be in 0..{self.layers - 1}, got {self.dense_layers!r}"
            )
        choices = self.experts
        if self.grouping is not None:
            # A group is ranked by its two best experts.
            if self.experts % self.grouping.groups or self.experts < 2 * self.grouping.groups:
                raise ValueError(
                    f"experts must be a multiple of {self.grouping.groups} groups of 2 or more, "
                    f"got {self.experts!r}"
                )
            choices = self.experts // self.grouping.groups * self.grouping.kept_groups
        if not 1 <= self.top_k <= choices:
            raise ValueError(f"top_k must be in 1..{choices}, got {self.top_k!r}")


SHAPES = {
    "lynx-moe-tiny": Shape(),
    "lynx-moe-deep": Shape(
        vocabulary=1024, layers=12, hidden=96, heads=3, kv_heads=1, experts=60, top_k=8, inner=16
    ),
    "lynx-moe-sigmoid": Shape(
        vocabulary=1024,
        layers=6,
        experts=64,
        top_k=6,
        inner=24,
        grouping=Grouping(groups=8, kept_groups=4, scale=2.5),
        shared_experts=1,
        dense_layers=1,
        dense_inner=256,
    ),
}
