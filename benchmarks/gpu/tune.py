"""Sweep tile shapes on this device and print rows for `TABLE` in lynx_kernels/tuning.py.

    python -m benchmarks.gpu.tune [--models qwen3-30b] [--slots 8 32] [--limit-min 9]
    python -m benchmarks.gpu.tune --dry-run

Gate-up and down are swept in turn, the other held at the best so far. T is half of the uncapped
one; several weight copies take turns. A candidate counts only if its output is right.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu import IS_DRY_RUN
from benchmarks.gpu.compilation import CompiledAhead
from benchmarks.gpu.harness import (
    DEVICE,
    MAX_ERROR,
    ROOT,
    Clock,
    Rows,
    capture,
    error_of,
    header,
    rows_of,
    times_us,
)
from benchmarks.gpu.shapes import SHAPES, TINY, Shape, route
from benchmarks.gpu.weights import Weights
from lynx_kernels.fused_moe import tuning
from lynx_kernels.fused_moe.tuning import GemmTiles, Tiles
from lynx_kernels.fused_moe.workspace import layer_of
from lynx_kernels.schedule import build_schedule_reference

SHARE = 0.5
NUM_COPIES = 4


def gate_up_candidates(slot: int, start: GemmTiles) -> Iterator[GemmTiles]:
    tokens = sorted({16, 32, min(64, max(16, slot))} - ({32} if slot <= 16 else set()))
    for bt, (bn, warps), bk, stages, programs in itertools.product(
        tokens, ((16, 2), (32, 4), (64, 4), (64, 8)), (64, 128), (3, 4, 6), (1, 2, 3, 4)
    ):
        stage_bytes = 2 * bk * (2 * bn + bt)
        if 24 << 10 <= programs * stages * stage_bytes <= 220 << 10 and programs * warps <= 16:
            yield replace(
                start,
                block_tokens=bt,
                block_rows=bn,
                block_depth=bk,
                num_warps=warps,
                num_stages=stages,
                programs_per_sm=programs,
            )


def down_candidates(slot: int, start: GemmTiles) -> Iterator[GemmTiles]:
    for bn, bk, stages, programs in itertools.product(
        (16, 32, 64, 128), (64, 128), (4, 6, 8), (1, 2, 3)
    ):
        stage_bytes = 2 * bk * (bn + start.block_tokens)
        if 24 << 10 <= programs * stages * stage_bytes <= 220 << 10:
            yield replace(
                start, block_rows=bn, block_depth=bk, num_stages=stages, programs_per_sm=programs
            )


def candidates(slot: int, start: Tiles) -> Iterator[tuple[str, Any]]:
    """Fields of `Tiles` to try, one at a time."""
    for tiles in gate_up_candidates(slot, start.gate_up):
        yield "gate_up", tiles
    for tiles in down_candidates(slot, start.down):
        yield "down", tiles
    for count in (1, 2):
        yield "num_prefetched", count
    yield "is_concatenated", not start.is_concatenated
    yield "is_tma", True


def sweep(shape: Shape, slot: int, copies: Sequence[Weights], rows: Rows, clock: Clock) -> Tiles:
    layer = layer_of(copies[0].w13, copies[0].w2)
    hidden = rows_of(shape, slot)
    ids, mix = (tensor.to(DEVICE) for tensor in route(shape, slot, SHARE))
    schedule = build_schedule_reference(ids, mix, shape.num_experts)
    expected = copies[0].reference(hidden, ids, mix)

    def time_of(tiles: Tiles) -> float:
        tuning.TABLE[layer, slot] = tiles
        workspace = copies[0].workspace(slot)
        got = copies[0].run(hidden, schedule, workspace)
        if error_of(got, expected) > MAX_ERROR:
            return float("inf")
        replay = capture(lambda: [weights.run(hidden, schedule, workspace) for weights in copies])
        return statistics.median(times_us(replay, 10)) / len(copies)

    best = tuning.tiles_for(layer, slot)
    best_us = time_of(best)
    tried = list(itertools.islice(candidates(slot, best), 3 if IS_DRY_RUN else None))
    jobs = [(shape, slot, replace(best, **{field: value})) for field, value in tried]
    with CompiledAhead(jobs) as compiled:
        compiled.wait_for(shape, [slot])
    for field, value in tried:
        if clock.is_over:
            break
        tiles = replace(best, **{field: value})
        try:
            us = time_of(tiles)
        except Exception as error:  # a candidate that does not fit the device is no candidate
            rows.add({"model": shape.name, "slot": slot, field: repr(value), "failed": repr(error)})
            continue
        rows.add({"model": shape.name, "slot": slot, field: repr(value), "us": round(us, 2)})
        if us < best_us:
            best, best_us = tiles, us
            print(f"{shape.name} M<={slot}: {us:8.1f} us  {field} {value}", flush=True)
    tuning.TABLE.pop((layer, slot), None)
    print(f"    ({layer}, {slot}): {best},  # {best_us:.1f} us", flush=True)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["qwen3-30b"])
    parser.add_argument(
        "--slots", nargs="+", type=int, choices=tuning.SIZE_CLASSES, default=[8, 32]
    )
    parser.add_argument("--limit-min", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu" / "tune.jsonl")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, interpreted")
    options = parser.parse_args()
    print(header(), flush=True)
    rows, clock = Rows(options.out), Clock(options.limit_min)
    for shape in [TINY] if IS_DRY_RUN else [SHAPES[name] for name in options.models]:
        copies = [Weights.random(shape, seed) for seed in range(1 if IS_DRY_RUN else NUM_COPIES)]
        for slot in options.slots[:1] if IS_DRY_RUN else options.slots:
            sweep(shape, slot, copies, rows, clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
