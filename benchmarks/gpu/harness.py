"""Shared by the GPU programs: the device, batches, graphs, clocks and rows.

With --dry-run, the same code runs on a CPU under Triton's interpreter: graphs become plain calls,
and times mean nothing.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.command import command
from benchmarks.gpu import IS_DRY_RUN
from benchmarks.gpu.shapes import Shape, logits_of
from lynx_kernels.schedule import Schedule
from lynx_kernels.select import (
    POLICIES,
    RowClass,
    SelectBuffers,
    Selection,
    select_reference,
    select_triton,
)

if not IS_DRY_RUN and not torch.cuda.is_available():
    sys.exit("no CUDA device: only --dry-run works here")
if not IS_DRY_RUN and triton.knobs.runtime.interpret:
    sys.exit("TRITON_INTERPRET is set: kernels would not be compiled")
ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cpu" if IS_DRY_RUN else "cuda")
DTYPE = torch.float32 if IS_DRY_RUN else torch.bfloat16  # the interpreter cannot multiply bf16
MAX_ERROR = 1e-5 if IS_DRY_RUN else 1e-2  # relative, of the norm
GRACE_S = 40.0  # for the result that is under way when the time is up


def rows_of(shape: Shape, num_rows: int, seed: int = 0) -> Tensor:
    rng = torch.Generator(DEVICE).manual_seed(seed)
    return torch.empty(num_rows, shape.hidden_size, dtype=DTYPE, device=DEVICE).normal_(
        generator=rng
    )


@dataclass(frozen=True)
class Router:
    """The inputs and output buffers of `select` for one batch, at fixed addresses."""

    inputs: dict[str, Any]  # tensors, by select's names
    buffers: SelectBuffers

    @classmethod
    def random(cls, shape: Shape, num_rows: int) -> Router:
        logits = logits_of(shape, num_rows, seed=num_rows)
        weights, ids = logits.softmax(dim=1).topk(shape.top_k, dim=1)
        inputs = {
            "scores": logits,
            "topk_ids": ids.int(),
            "topk_weights": weights,
            "row_class": torch.full((num_rows,), RowClass.FLEXIBLE, dtype=torch.uint8),
            "budget": torch.tensor(shape.num_experts, dtype=torch.int32),
            "floor": torch.tensor(1, dtype=torch.int32),
            "demand": torch.tensor(1.0),
        }
        buffers = SelectBuffers.allocate(
            max_rows=num_rows,
            top_k=shape.top_k,
            num_experts=shape.num_experts,
            num_scheduled=shape.num_experts,
            device=DEVICE,
        )
        return cls({name: value.to(DEVICE) for name, value in inputs.items()}, buffers)

    def control(self, *, budget: int, demand: float = 1.0) -> None:
        self.inputs["budget"].fill_(budget)
        self.inputs["demand"].fill_(demand)

    def reference(self) -> Selection:
        """The right selection under the controls that are set, on the CPU."""
        inputs = {name: value.cpu() for name, value in self.inputs.items()}
        inputs["scores"] = inputs["scores"].softmax(dim=1)
        return select_reference(**inputs)

    def select(self) -> Selection:
        """From router logits, as a server calls it."""
        return select_triton(
            **self.inputs,
            policy=POLICIES["lynx"],
            correction_bias=None,
            scoring="softmax",
            out=self.buffers,
        )


def copy_into(schedule: Schedule, source: Schedule) -> None:
    """New content at the addresses that a captured graph reads."""
    for field in fields(schedule):
        getattr(schedule, field.name).copy_(getattr(source, field.name))


def error_of(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the expected; infinite where anything is not finite."""
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def capture(run: Callable[[], Any]) -> Callable[[], Any]:
    """A CUDA graph of run, or run itself on a CPU."""
    if DEVICE.type == "cpu":
        return run
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):  # compile, and let libraries allocate
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def times_us(replay: Callable[[], Any], repeats: int) -> list[float]:
    """Device time of each of `repeats` replays, after a few."""
    if DEVICE.type == "cpu":
        times = []
        for _ in range(min(repeats, 2)):
            start = time.perf_counter()
            replay()
            times.append((time.perf_counter() - start) * 1e6)
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for _ in range(3):
        replay()
    events[0].record()
    for event in events[1:]:
        replay()
        event.record()
    torch.cuda.synchronize()
    return [1e3 * a.elapsed_time(b) for a, b in itertools.pairwise(events)]


def summary(times: Sequence[float], per: int = 1) -> dict[str, float]:
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"median_us": round(median / per, 2), "iqr_us": round((high - low) / per, 2)}


def copy_bandwidth() -> float:
    """Bytes read and written per microsecond by a large device copy."""
    num_bytes = 1 << (16 if DEVICE.type == "cpu" else 31)
    source = torch.empty(num_bytes // 4, dtype=torch.int32, device=DEVICE).random_()
    target = torch.empty_like(source)
    return 2 * num_bytes / statistics.median(times_us(lambda: target.copy_(source), 20))


class Rows:
    """Results, written as they come."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self.add(header())

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        return row


def header() -> dict[str, Any]:
    name = "CPU, dry run" if DEVICE.type == "cpu" else torch.cuda.get_device_name()
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "command": command(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


class Clock:
    """The operator's time limit, counted down.

    Programs ask it between two results. A result that does not come, as of a kernel that hangs,
    ends the program GRACE_S after the limit; the rows before it are in their file. A program that
    is terminated sooner says where it was.
    """

    def __init__(self, limit_min: float) -> None:
        self._end = time.monotonic() + 60 * limit_min
        watch = threading.Timer(60 * limit_min + GRACE_S, end_process)
        watch.daemon = True
        watch.start()
        faulthandler.register(signal.SIGTERM, chain=True)

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._end


def end_process() -> None:
    """Say where every thread is and end with 1, whatever the main thread waits for."""
    print(f"no result {GRACE_S} s after the time was up: ended", flush=True)
    faulthandler.dump_traceback()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
