"""Time of the MoE layer on this device, by T, against its byte floor and other implementations.

    python -m benchmarks.gpu.bench [--limit-min 9] [--models qwen3-30b mixtral-tp2] [--out FILE]
    python -m benchmarks.gpu.bench --dry-run        same code on a CPU, interpreted, a tiny shape

Each time is the median replay of a CUDA graph that runs the layer over several copies of its
weights in turn, so that L2 is cold, divided by the copies. The floor is the bytes that must move
over the copy bandwidth measured in the same run. A side is timed only after its output was compared
with float64. A budget on `select` lowers T; all sides get the selected ids. Sides:

    layer     select with its schedule, gate-up, down: everything in SGLang's place
    fused     the last two alone        select    the first alone
    fused tma the same, weights copied by the tensor memory accelerator, where there is one
    sglang, sglang fused swiglu, torch grouped    (rivals.py), where they can be imported

The most important points come first; each row is appended to the file at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import IS_DRY_RUN
from benchmarks.gpu.compilation import CompiledAhead
from benchmarks.gpu.harness import (
    MAX_ERROR,
    ROOT,
    Clock,
    Router,
    Rows,
    capture,
    copy_bandwidth,
    error_of,
    header,
    rows_of,
    summary,
    times_us,
)
from benchmarks.gpu.model import Prediction
from benchmarks.gpu.rivals import RIVALS, expected_of, max_error_of, serves
from benchmarks.gpu.shapes import SHAPES, TINY, Shape, targets_of
from benchmarks.gpu.weights import Weights

COLD_BYTES = 256 << 20  # active weights over all copies, several times any L2
MIN_COPIES, MAX_COPIES = 4, 16
REPEATS = 20
Side = Callable[[Weights], Tensor]


@dataclass
class Point:
    """One batch at one budget: inputs at fixed addresses, and what selection made of them."""

    shape: Shape
    num_rows: int
    budget: int | None = None  # of experts; None: all that the rows want

    def __post_init__(self) -> None:
        self.hidden = rows_of(self.shape, self.num_rows)
        self.out = torch.empty_like(self.hidden)
        self.router = Router.random(self.shape, self.num_rows)
        if self.budget is not None:
            self.router.control(budget=self.budget)
        chosen = self.router.select()
        assert chosen.schedule is not None
        self.schedule = chosen.schedule
        self.ids, self.weights = chosen.topk_ids.clone(), chosen.topk_weights.clone()
        self.num_active = int(chosen.num_active)

    def sides(self, copies: Sequence[Weights]) -> Iterator[tuple[str, Side]]:
        workspace = copies[0].workspace(self.num_rows)

        def fused(weights: Weights) -> Tensor:
            return weights.run(self.hidden, self.schedule, workspace, self.out)

        def layer(weights: Weights) -> Tensor:
            self.router.select()
            return fused(weights)

        def rival_of(name: str) -> Side:
            return lambda weights: RIVALS[name](weights, self.hidden, self.ids, self.weights)

        def fused_tma(weights: Weights) -> Tensor:
            return weights.run_by_tma(self.hidden, self.schedule, workspace, self.out)

        yield "layer", layer
        yield "fused", fused
        if copies[0].can_use_tma:
            yield "fused tma", fused_tma
        for name in RIVALS:
            if serves(name, copies[0]):
                yield name, rival_of(name)


def run_all(side: Side, copies: Sequence[Weights]) -> None:
    for weights in copies:
        side(weights)


def measure(point: Point, copies: Sequence[Weights], bandwidth: float) -> Iterator[dict[str, Any]]:
    shape, num_bytes = point.shape, point.shape.layer_bytes(point.num_rows, point.num_active)
    prediction = Prediction(shape, point.num_rows, point.num_active, bandwidth / 1e6)
    predicted = {"layer": prediction.layer_us, "fused": prediction.fused_us}
    if prediction.sglang_us is not None:
        predicted["sglang"] = prediction.sglang_us
    labels: dict[str, Any] = {
        "model": shape.name,
        "M": point.num_rows,
        "T": point.num_active,
        "floor_us": round(num_bytes / bandwidth, 2),
    }
    for name, side in point.sides(copies):
        row: dict[str, Any] = labels | {
            "side": name,
            "predicted_us": round(predicted.get(name, 0.0), 1),
        }
        try:
            point.out.fill_(float("nan"))
            got = side(copies[0])
            expected = expected_of(name, copies[0], point.hidden, point.ids, point.weights)
            row["error"] = float(f"{error_of(got, expected):.1e}")
            if row["error"] <= max_error_of(name, copies[0]):
                replay = capture(partial(run_all, side, copies))
                row |= summary(times_us(replay, REPEATS), per=len(copies))
                row["over_floor"] = round(row["median_us"] / row["floor_us"], 3)
        except Exception as error:  # of what is not served: its row says so, the others go on
            if name in ("layer", "fused"):
                raise
            row["failed"] = f"{type(error).__name__}: {error}"[:200]
        yield row
    num_calls = 1 if IS_DRY_RUN else 8
    replay = capture(lambda: [point.router.select() for _ in range(num_calls)])
    yield labels | {"side": "select"} | summary(times_us(replay, REPEATS), per=num_calls)


def fit(rows: Sequence[dict[str, Any]], side: str) -> dict[str, Any] | None:
    """time = c0 + b * T of one side over the budgets of one batch."""
    points = [(row["T"], row["median_us"]) for row in rows if row["side"] == side]
    if len({active for active, _ in points}) < 3:
        return None
    active, times = torch.tensor(points, dtype=torch.float64).T
    design = torch.stack([torch.ones_like(active), active], dim=1)
    c0, slope = torch.linalg.lstsq(design, times[:, None]).solution[:, 0].tolist()
    residual = ((times - c0 - slope * active) ** 2).sum() / ((times - times.mean()) ** 2).sum()
    return {"side": side, "c0_us": round(c0, 2), "slope_us": round(slope, 3)} | {
        "r2": round(1 - float(residual), 5)
    }


def plan(names: Sequence[str]) -> Iterator[tuple[Shape, tuple[int, ...]]]:
    """Models and batch sizes, the most wanted first."""
    if IS_DRY_RUN:
        yield TINY, (3,)
        yield TINY.in_fp8("block"), (3,)
        return
    shapes = [SHAPES[name] for name in names]
    yield shapes[0], (8, 32, 1, 64, 16, 128)
    for shape in shapes[1:]:
        yield shape, (8, 32, 128)
    for shape in shapes[1:]:
        yield shape, (1, 16, 64)


def show(row: dict[str, Any]) -> None:
    if "r2" in row:
        print(row, flush=True)
        return
    end = row.get("failed") or f"error {row.get('error', '-')}"
    print(
        f"{row['model']:>17} M={row['M']:<4} T={row['T']:<4} {row['side']:<20}"
        f"{row.get('median_us', float('nan')):9.1f} us (+-{row.get('iqr_us', 0):.1f})"
        f"  floor {row['floor_us']:7.1f}  x{row.get('over_floor', float('nan')):.2f}"
        f"  predicted {row.get('predicted_us', 0):.1f}  {end}",
        flush=True,
    )


def bench(
    shape: Shape, batches: Sequence[int], bandwidth: float, compiled: CompiledAhead
) -> Iterator[dict[str, Any]]:
    """Rows of a layer: every side at every budget of every batch, and the fits over T."""
    active_bytes = shape.top_k * shape.expert_bytes
    num_copies = min(MAX_COPIES, max(MIN_COPIES, -(-COLD_BYTES // active_bytes)))
    copies = [Weights.random(shape, seed) for seed in range(1 if IS_DRY_RUN else num_copies)]
    for num_rows in batches:
        compiled.wait_for(shape, [num_rows])
        measured = []
        uncapped = Point(shape, num_rows).num_active
        for budget in targets_of(shape, uncapped)[:: 3 if IS_DRY_RUN else 1]:
            for row in measure(Point(shape, num_rows, budget), copies, bandwidth):
                measured.append(row)
                yield row
        for side in ("layer", "fused"):
            line = fit([row for row in measured if "median_us" in row], side)
            if line is not None:
                floor_slope = shape.expert_bytes / bandwidth
                line["slope_over_floor"] = round(line["slope_us"] / floor_slope, 3)
                yield {"model": shape.name, "M": num_rows} | line


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit-min", type=float, default=9.0)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu" / "fused_moe.jsonl")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, interpreted")
    options = parser.parse_args()
    clock, rows, num_wrong = Clock(options.limit_min), Rows(options.out), 0
    plans = list(plan(options.models))
    jobs = [(shape, num_rows, None) for shape, batches in plans for num_rows in batches]
    with CompiledAhead(jobs) as compiled:
        bandwidth = copy_bandwidth()
        print(header() | rows.add({"copy_tb_s": float(f"{bandwidth / 1e6:.4g}")}), flush=True)
        for shape, batches in plans:
            for row in bench(shape, batches, bandwidth, compiled):
                show(rows.add(row))
                num_wrong += row.get("error", 0.0) > MAX_ERROR and row["side"] not in RIVALS
                if clock.is_over:
                    print(f"time is up; rows are in {options.out}")
                    return int(num_wrong > 0)
    print(f"done; rows are in {options.out}")
    return int(num_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
