"""Tile shapes of the fused MoE by device, layer and size class: fixed before a graph is captured.

T never chooses a tile: a captured graph does not know it. `RULES` follow from counting: enough
bytes in flight on every SM, little traffic between L2 and SMs. A measured row in `TABLE` comes
before them. This makes rows, on the device:

    python -m benchmarks.gpu.tune
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SIZE_CLASSES = (8, 16, 32, 64, 128)  # of M; the last serves every M above it, too
MAX_CONCAT_ROWS = 64  # above, a product per expert costs less than its zeros
MAX_SPLIT_BYTES = 64 * 1024  # partial sums that one program adds up
MAX_SPLIT_PROGRAMS = 2  # per SM: with more, each has too little to read
FEW_EXPERTS = 32  # below, an expert has many rows even under even routing
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}  # per SM
SHARED_BYTES_ELSEWHERE = 99 << 10
EPILOGUE_BYTES = 9 << 10  # per program beside its stages, the driver's share included
MAX_WARPS = 8  # per SM, at 255 registers per thread


@dataclass(frozen=True, slots=True)
class GemmTiles:
    """One product: BN weight rows (of gate and of up each) by BT tokens, BK deep."""

    block_tokens: int
    block_rows: int
    block_depth: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class Tiles:
    gate_up: GemmTiles
    down: GemmTiles
    is_concatenated: bool  # down is one product over all active experts
    num_prefetched: int = 0  # units of down weights a program brings to L2 while gate-up ends
    # The tensor memory accelerator copies weights. It needs sm_90, rows of weights at multiples of
    # 16 bytes, and gate rows before up rows. No rule sets it before a device shows that it pays.
    is_tma: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """Sizes of a MoE layer that its tiles depend on. arch is 10 * major + minor."""

    arch: int
    element_bytes: int  # of the weights
    hidden_size: int
    intermediate_size: int
    num_experts: int


TABLE: dict[tuple[Layer, int], Tiles] = {}

# By size class: (BT, BN, BK, warps, stages).
RULES = {
    8: ((16, 16, 128, 2, 6), (16, 64, 64, 4, 6)),
    16: ((16, 32, 128, 4, 4), (16, 64, 64, 4, 6)),
    32: ((32, 64, 64, 4, 4), (32, 64, 64, 4, 6)),
    64: ((32, 64, 64, 4, 4), (64, 64, 64, 4, 6)),
    128: ((32, 64, 64, 4, 4), (32, 64, 64, 4, 6)),
}


def size_class_of(num_rows: int) -> int:
    return next((size for size in SIZE_CLASSES if num_rows <= size), SIZE_CLASSES[-1])


def tiles_for(layer: Layer, size_class: int) -> Tiles:
    return TABLE.get((layer, size_class)) or _tiles_by_rule(layer, size_class)


def _tiles_by_rule(layer: Layer, size_class: int) -> Tiles:
    gate_up, down = (GemmTiles(*sizes, programs_per_sm=1) for sizes in RULES[size_class])
    is_concatenated = size_class <= MAX_CONCAT_ROWS
    if size_class > FEW_EXPERTS and layer.num_experts < FEW_EXPERTS:
        gate_up = replace(gate_up, block_tokens=64, num_warps=8)
        down = replace(down, block_tokens=64)
    if layer.arch >= 100 and down.block_tokens == 64:  # more would spill with biases
        down = replace(down, num_stages=4)
    if layer.element_bytes == 1:  # a step reads one block of scales; below 64 rows no wgmma
        would_spill = layer.arch >= 100 and gate_up.block_tokens >= 32
        num_warps = 8 if would_spill else max(gate_up.num_warps, 4)
        gate_up = replace(
            gate_up, block_rows=64, block_depth=128, num_warps=num_warps, num_stages=4
        )
        down = replace(down, block_depth=128, num_stages=4)
    elif layer.hidden_size % gate_up.block_depth:
        gate_up = replace(gate_up, block_depth=64)
    return Tiles(
        gate_up=_fitted(gate_up, layer, num_weights=2),
        down=_fitted(down, layer, num_weights=1),
        is_concatenated=is_concatenated,
    )


def _fitted(tiles: GemmTiles, layer: Layer, *, num_weights: int) -> GemmTiles:
    """With the stages and programs that fit an SM at any number of registers."""
    max_programs = max(1, MAX_WARPS // tiles.num_warps)
    shared_bytes = SHARED_BYTES.get(layer.arch, SHARED_BYTES_ELSEWHERE)
    weight_bytes = num_weights * tiles.block_rows * layer.element_bytes
    stage_bytes = tiles.block_depth * (weight_bytes + 2 * tiles.block_tokens)
    fitting = shared_bytes // min(2, max_programs) - EPILOGUE_BYTES
    num_stages = max(2, min(tiles.num_stages, fitting // stage_bytes))
    has_warpgroups = layer.arch >= 90 and tiles.block_rows >= 64
    num_buffers = num_stages if has_warpgroups else num_stages - 1
    fitting_programs = shared_bytes // (num_buffers * stage_bytes + EPILOGUE_BYTES)
    programs_per_sm = max(1, min(max_programs, fitting_programs))
    return replace(tiles, num_stages=num_stages, programs_per_sm=programs_per_sm)


def num_splits(tiles: GemmTiles, layer: Layer, num_sms: int) -> int:
    """S: how many programs share the experts of a concatenated down product."""
    num_blocks = -(-layer.hidden_size // tiles.block_rows)
    max_programs = num_sms * min(tiles.programs_per_sm, MAX_SPLIT_PROGRAMS)
    max_sums = MAX_SPLIT_BYTES // (4 * tiles.block_rows * tiles.block_tokens)
    return max(1, min(max_programs // num_blocks, max_sums))
