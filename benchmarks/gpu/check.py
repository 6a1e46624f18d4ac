"""Correctness of the kernels on this device: numerics, captured graphs, scratch, determinism.

    python -m benchmarks.gpu.check [--quick]
    python -m benchmarks.gpu.check --dry-run        same code on a CPU, interpreted, tiny shapes

First select and the fused MoE in one graph, whose budget and demand change between replays; then
the fused MoE alone over hard routings; then consecutive layers. Every output is compared with a
float64 reference by relative norm. NaN fills outputs and scratch before each run, and garbage the
parts that no kernel may read. Exits with 1 on a fault.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu import IS_DRY_RUN
from benchmarks.gpu.compilation import CompiledAhead
from benchmarks.gpu.harness import (
    DEVICE,
    MAX_ERROR,
    Clock,
    Router,
    capture,
    copy_into,
    error_of,
    header,
    rows_of,
)
from benchmarks.gpu.shapes import SHAPES, TINY, Shape, route
from benchmarks.gpu.weights import Weights
from lynx_kernels.fused_moe import Workspace
from lynx_kernels.schedule import Schedule, build_schedule_reference

GARBAGE = 1 << 20
NUM_REPLAYS = 2 if IS_DRY_RUN else 3


@dataclass(frozen=True)
class Outcome:
    name: str
    error: float
    fault: str = ""

    @property
    def is_good(self) -> bool:
        return not self.fault and self.error <= MAX_ERROR


def routings(shape: Shape, num_rows: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, ids, weights: what one captured graph has to serve."""
    for share in (1.0, 0.5, 0.25):
        ids, weights = route(shape, num_rows, share, seed=num_rows)
        yield f"T={ids.unique().numel()}", ids, weights
    ids, weights = route(shape, num_rows, seed=1)
    padded = ids.clone()
    padded[num_rows // 2 :] = -1
    yield "half the rows are pads", padded, weights
    yield "T=0", torch.full_like(ids, -1), weights
    alone = torch.full_like(ids, -1)
    alone[:, -1] = shape.num_experts - 1
    yield "T=1, the last expert", alone, weights


def scheduled(shape: Shape, ids: Tensor, weights: Tensor) -> Schedule:
    schedule = build_schedule_reference(ids.to(DEVICE), weights.to(DEVICE), shape.num_experts)
    num_active, num_pairs = int(schedule.num_active), int((schedule.slots >= 0).sum())
    for name in ("experts", "counts", "offsets"):
        getattr(schedule, name)[num_active:] = GARBAGE
    schedule.tokens[num_pairs:] = GARBAGE
    schedule.weights[num_pairs:] = float("nan")
    return schedule


def poison(workspace: Workspace, out: Tensor) -> None:
    for tensor in (workspace.inner, workspace.sums, out):
        tensor.fill_(float("nan"))


def check_layer(weights: Weights, num_rows: int) -> Iterator[Outcome]:
    """Selection and experts in one graph, captured once; the controls change between replays."""
    shape = weights.shape
    hidden, router = rows_of(shape, num_rows), Router.random(shape, num_rows)
    workspace, out = weights.workspace(num_rows), torch.empty_like(hidden)

    def run() -> None:
        schedule = router.select().schedule
        assert schedule is not None
        weights.run(hidden, schedule, workspace, out)

    replay = capture(run)
    for share, demand in ((1.0, 1.0), (0.25, 1.0), (0.5, 0.6), (0.0, 1.0), (1.0, 0.5)):
        router.control(budget=round(share * shape.num_experts), demand=demand)
        expected = router.reference()
        bits, got = [], router.buffers.view(num_rows)
        for _ in range(NUM_REPLAYS):
            poison(workspace, out)
            for tensor in (router.buffers.numbers, router.buffers.ids):
                tensor.fill_(-GARBAGE)
            replay()
            bits.append(out.clone())
        fault = "" if all(torch.equal(bits[0], b) for b in bits) else "bits differ between replays"
        if not torch.equal(got.topk_ids.cpu(), expected.topk_ids):
            fault = "selection differs from the reference"
        ids, mix = expected.topk_ids.to(DEVICE), expected.topk_weights.to(DEVICE)
        name = f"{shape.name} M={num_rows} budget {share:.0%}, demand {demand}"
        name += f": T={int(expected.num_active)}"
        yield Outcome(name, error_of(bits[0], weights.reference(hidden, ids, mix)), fault)


def check_batch(weights: Weights, num_rows: int) -> Iterator[Outcome]:
    """One graph, captured once, replayed over every routing."""
    shape = weights.shape
    hidden = rows_of(shape, num_rows)
    workspace, out = weights.workspace(num_rows), torch.empty_like(hidden)
    cases = list(routings(shape, num_rows))
    schedule = scheduled(shape, *cases[0][1:])
    poison(workspace, out)
    replay = capture(lambda: weights.run(hidden, schedule, workspace, out))
    for name, ids, topk_weights in cases:
        copy_into(schedule, scheduled(shape, ids, topk_weights))
        expected = weights.reference(hidden, ids.to(DEVICE), topk_weights.to(DEVICE))
        bits = []
        for _ in range(NUM_REPLAYS):
            poison(workspace, out)
            replay()
            bits.append(out.clone())
        fault = "" if all(torch.equal(bits[0], b) for b in bits) else "bits differ between replays"
        if int(workspace.arrivals.abs().sum()):
            fault = "an arrival counter was left behind"
        yield Outcome(f"{shape.name} M={num_rows} {name}", error_of(bits[0], expected), fault)


def check_chain(weights: Weights, num_rows: int, num_layers: int) -> Outcome:
    """Layers that follow each other in one graph share scratch and overlap at their seams."""
    shape = weights.shape
    first = rows_of(shape, num_rows)
    workspace = weights.workspace(num_rows)
    ids, topk_weights = (tensor.to(DEVICE) for tensor in route(shape, num_rows, seed=3))
    schedule = scheduled(shape, ids, topk_weights)
    outs = [torch.empty_like(first) for _ in range(num_layers)]

    def run() -> None:
        hidden = first
        for out in outs:
            hidden = weights.run(hidden, schedule, workspace, out)

    replay = capture(run)
    for out in outs:
        poison(workspace, out)
    replay()
    error = 0.0
    for hidden, out in zip([first, *outs], outs, strict=False):
        error = max(error, error_of(out, weights.reference(hidden, ids, topk_weights)))
    return Outcome(f"{shape.name} M={num_rows} {num_layers} layers in one graph", error)


def check_tma(weights: Weights, num_rows: int) -> Outcome:
    """Tiles that no rule sets yet, so that `make gpu-tune` may."""
    shape = weights.shape
    hidden, workspace = rows_of(shape, num_rows), weights.workspace(num_rows)
    ids, topk_weights = (tensor.to(DEVICE) for tensor in route(shape, num_rows, seed=5))
    schedule, out = scheduled(shape, ids, topk_weights), torch.empty_like(hidden)
    replay = capture(lambda: weights.run_by_tma(hidden, schedule, workspace, out))
    poison(workspace, out)
    replay()
    error = error_of(out, weights.reference(hidden, ids, topk_weights))
    return Outcome(f"{shape.name} M={num_rows} weights by TMA", error)


def outcomes(is_quick: bool) -> Iterator[Outcome]:
    shapes = [TINY, TINY.in_fp8("block")] if IS_DRY_RUN else [*SHAPES.values()]
    batches = [3, 17, 70] if IS_DRY_RUN else [1, 8, 13, 32, 64, 128]
    if is_quick:
        shapes, batches = shapes[:1], batches[::2]
    jobs = [(shape, num_rows, None) for shape in shapes for num_rows in batches]
    with CompiledAhead(jobs) as compiled:
        for shape in shapes:
            weights = Weights.random(shape, seed=0)
            for num_rows in batches:
                compiled.wait_for(shape, [num_rows])
                yield from check_layer(weights, num_rows)
            for num_rows in batches:
                yield from check_batch(weights, num_rows)
            if weights.can_use_tma:
                for num_rows in batches:
                    yield check_tma(weights, num_rows)
            yield check_chain(weights, batches[1], num_layers=2 if IS_DRY_RUN else 8)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="first shape, three batch sizes")
    parser.add_argument("--limit-min", type=float, default=6.0)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, interpreted")
    options = parser.parse_args()
    print(header(), flush=True)
    clock, start, num_bad, num_all = Clock(options.limit_min), time.monotonic(), 0, 0
    for outcome in outcomes(options.quick):
        num_all += 1
        num_bad += not outcome.is_good
        verdict = "ok  " if outcome.is_good else "FAIL"
        print(f"{verdict} {outcome.error:.1e} {outcome.name} {outcome.fault}", flush=True)
        if clock.is_over:
            print("time is up: not all was checked")
            break
    print(f"{num_all - num_bad} of {num_all} good, {time.monotonic() - start:.0f} s")
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
