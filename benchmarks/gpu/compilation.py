"""Compiles kernels on all cores ahead of their first launch.

    python -m benchmarks.gpu.compilation [--model qwen3-30b] [--batches 1 8]

does so for a program that starts meanwhile, into the disk cache that both use.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace

import torch

from benchmarks.gpu.harness import DEVICE
from benchmarks.gpu.launches import SelectVariant, Variant
from benchmarks.gpu.shapes import SHAPES, Shape
from lynx_kernels.fused_moe import tuning
from lynx_kernels.fused_moe.tuning import Tiles

Job = tuple[Shape, int, Tiles | None]  # a layer, its number of rows, tiles that are no rule's


class CompiledAhead:
    """Compiles jobs on all cores, in their order, into Triton's disk cache, while others run.

    A job of the rules' tiles is compiled with weights by TMA, too, where there is one.
    What fails here, or was not listed, is compiled where it is first launched: only slower.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._futures: dict[Job, Future[None]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if DEVICE.type == "cpu":
            return
        major, minor = torch.cuda.get_device_capability()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(max(1, (os.cpu_count() or 1) - 2), mp_context=context)
        for job in dict.fromkeys(jobs):
            self._futures[job] = self._pool.submit(_compile, *job, 10 * major + minor)

    def wait_for(self, shape: Shape, batches: Iterable[int]) -> None:
        wanted = {(shape, num_rows) for num_rows in batches}
        jobs = [job for job in self._futures if job[:2] in wanted]
        failed = [error for job in jobs if (error := self._futures.pop(job).exception())]
        if failed:
            print(f"{len(failed)} of {len(jobs)} not compiled ahead: {failed[0]!r}", flush=True)

    def __enter__(self) -> CompiledAhead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _compile(shape: Shape, num_rows: int, tiles: Tiles | None, arch: int) -> None:
    variant = Variant(shape, num_rows, arch)
    variants = [variant]
    if tiles is None and arch >= 90 and shape.fits_tma:
        variants.append(replace(variant, is_tma=True))
    select = SelectVariant(num_rows, shape.num_experts, shape.top_k, arch)
    if tiles is not None:
        tuning.TABLE[variant.layer, tuning.size_class_of(num_rows)] = tiles
    launches = [launch for variant in variants for launch in variant.record()]
    launches += select.record() if tiles is None else []
    for launch in launches:
        launch.kernel.warmup(grid=launch.grid, **launch.arguments)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="qwen3-30b")
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--dry-run", action="store_true", help="compile nothing")
    options = parser.parse_args()
    shape, began_s = SHAPES[options.model], time.monotonic()
    with CompiledAhead((shape, num_rows, None) for num_rows in options.batches) as compiled:
        compiled.wait_for(shape, options.batches)
    print(f"compiled in {time.monotonic() - began_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
