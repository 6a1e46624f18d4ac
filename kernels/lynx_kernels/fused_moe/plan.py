"""The plan of a fused MoE by batch size and device; no schedule changes it."""

from __future__ import annotations

from dataclasses import dataclass

from lynx_kernels.device import has_pdl
from lynx_kernels.fused_moe import tuning
from lynx_kernels.fused_moe.tuning import GemmTiles, Layer, Tiles


@dataclass(frozen=True, slots=True)
class Plan:
    tiles: Tiles
    num_rows: int
    top_k: int
    num_gate_up_programs: int
    num_down_programs: int  # of a product per expert
    num_down_blocks: int  # of BN columns
    num_splits: int  # S, of the concatenated product
    is_chunked: bool  # an expert may have more rows than a gate-up tile
    is_pdl: bool  # programmatic dependent launch: start early, wait inside

    @property
    def num_sums(self) -> int:
        """Float32 scratch of the down product, in elements."""
        tile = self.tiles.down.block_rows * self.num_down_blocks
        if self.tiles.is_concatenated:
            return self.num_splits * tile * self.tiles.down.block_tokens
        return self.num_rows * self.top_k * tile


def make_plan(layer: Layer, num_sms: int, num_rows: int, top_k: int) -> Plan:
    tiles = tuning.tiles_for(layer, tuning.size_class_of(num_rows))

    def num_programs(gemm: GemmTiles, num_columns: int) -> int:
        """Enough to fill the device, no more than there can be tiles."""
        num_pairs = num_rows * top_k
        max_chunks = min(layer.num_experts, num_pairs) + num_pairs // gemm.block_tokens
        max_tiles = max_chunks * -(-num_columns // gemm.block_rows)
        return max(1, min(num_sms * gemm.programs_per_sm, max_tiles))

    return Plan(
        tiles=tiles,
        num_rows=num_rows,
        top_k=top_k,
        num_gate_up_programs=num_programs(tiles.gate_up, layer.intermediate_size),
        num_down_programs=num_programs(tiles.down, layer.hidden_size),
        num_down_blocks=-(-layer.hidden_size // tiles.down.block_rows),
        num_splits=tuning.num_splits(tiles.down, layer, num_sms),
        is_chunked=num_rows > tiles.gate_up.block_tokens,
        is_pdl=has_pdl(layer.arch),
    )
