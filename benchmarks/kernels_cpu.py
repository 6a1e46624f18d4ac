"""CPU kernels: fused MoE against SGLang's native path at the same ids, and the cost of selection.

    python -m benchmarks.kernels_cpu [--repeats 100] [--threads 1] [--out FILE]

Repeats of the two sides are interleaved, so that a busy machine slows both. A row is printed only
after its outputs were compared: bit for bit with native, by id and weight with the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import command
from lynx_kernels import POLICIES, CpuExperts, RowClass, select, select_reference

ROOT = Path(__file__).parents[1]
ROWS = (1, 4, 16, 64, 512)
LAYERS = ((128, 48, 64, 4), (512, 256, 64, 4))  # H, I, E, K
SELECTIONS = ((16, 64, 4), (16, 128, 8))  # M, E, K


def interleaved_us(
    sides: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[str, float]]:
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 5):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if repeat >= 5:  # warm
                samples[name].append((time.perf_counter() - start) * 1e6)
    quartiles = {name: statistics.quantiles(times, n=4) for name, times in samples.items()}
    return {
        name: {"median_us": round(q[1], 1), "iqr_us": round(q[2] - q[0], 1)}
        for name, q in quartiles.items()
    }


def route(num_rows: int, num_experts: int, top_k: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    scores = (2 * torch.randn(num_rows, num_experts, generator=rng)).softmax(dim=1)
    weights, ids = scores.topk(top_k, dim=1)
    return scores, ids.int(), weights


def native_moe(w13: Tensor, w2: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.layers.moe.fused_moe_native import moe_forward_native
        from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
        from sglang.srt.layers.moe.topk import StandardTopKOutput
    layer = SimpleNamespace(num_experts=w13.shape[0], w13_weight=w13, w2_weight=w2)
    config = MoeRunnerConfig(activation="silu")
    return lambda hidden, ids, weights: moe_forward_native(
        layer, hidden, StandardTopKOutput(weights, ids, None), config
    )


def bench_moe(repeats: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    rows = []
    for hidden_size, inner_size, num_experts, top_k in LAYERS:
        rng = torch.Generator().manual_seed(0)
        w13 = torch.randn(num_experts, 2 * inner_size, hidden_size, generator=rng) / 10
        w2 = torch.randn(num_experts, hidden_size, inner_size, generator=rng) / 10
        w13, w2 = w13.to(dtype), w2.to(dtype)
        sides: dict[str, Callable[..., Tensor]] = {
            "native": native_moe(w13, w2),
            "ours": CpuExperts(w13, w2),
        }
        for num_rows in ROWS:
            _, ids, weights = route(num_rows, num_experts, top_k, rng)
            hidden = torch.randn(num_rows, hidden_size, generator=rng).to(dtype)
            row = {"H": hidden_size, "I": inner_size, "E": num_experts, "K": top_k, "M": num_rows}
            row["T"] = ids.unique().numel()
            rows.append(row | compare_moe(sides, (hidden, ids, weights), repeats))
    return rows


def compare_moe(
    sides: Mapping[str, Callable[..., Tensor]], given: tuple[Tensor, ...], repeats: int
) -> dict[str, Any]:
    if not torch.equal(sides["ours"](*given), sides["native"](*given)):
        return {"is_equal": False}
    times = interleaved_us({name: partial(side, *given) for name, side in sides.items()}, repeats)
    ratio = round(times["native"]["median_us"] / times["ours"]["median_us"], 2)
    return {"is_equal": True, **times, "ratio": ratio}


def bench_select(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for num_rows, num_experts, top_k in SELECTIONS:
        scores, ids, weights = route(num_rows, num_experts, top_k, torch.Generator().manual_seed(0))
        given: dict[str, Any] = {
            "scores": scores,
            "topk_ids": ids,
            "topk_weights": weights,
            "row_class": torch.full((num_rows,), RowClass.FLEXIBLE, dtype=torch.uint8),
            "budget": torch.tensor(num_experts // 4, dtype=torch.int32),
            "floor": torch.tensor(1, dtype=torch.int32),
            "demand": torch.tensor(0.6),
            "similarity": torch.eye(num_experts),
        }
        sides = {policy: partial(select, **given, policy=policy) for policy in POLICIES}
        times = interleaved_us(sides, repeats)
        for policy in POLICIES:
            got, expected = sides[policy](), select_reference(**given, policy=policy)
            is_equal = torch.equal(got.topk_ids, expected.topk_ids) and torch.allclose(
                got.topk_weights, expected.topk_weights, rtol=1e-6, atol=1e-9
            )
            row: dict[str, Any] = {"M": num_rows, "E": num_experts, "K": top_k, "policy": policy}
            row |= {"T_before": ids.unique().numel(), "T_after": int(got.num_active)}
            row |= {"is_equal": is_equal} | (times[policy] if is_equal else {})
            rows.append(row)
    return rows


def header(arguments: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    cpu_info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpu_info.read_text()) if cpu_info.exists() else None
    return {
        "machine": f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sglang": version("sglang"),
        "commit": commit.stdout.strip() if commit.returncode == 0 else "none",
        "command": command(),
    }


def print_tables(result: dict[str, Any]) -> None:
    print("\n".join(f"{name}: {value}" for name, value in result["header"].items()))
    print("\nfused MoE          M    T   native us (IQR)     ours us (IQR)   ratio")
    for row in result["fused_moe"]:
        line = f"H={row['H']:<4} I={row['I']:<4} {row['M']:>6} {row['T']:>4}"
        if row["is_equal"]:
            for side in ("native", "ours"):
                line += f"  {row[side]['median_us']:>9} ({row[side]['iqr_us']:>6})"
            line += f"  {row['ratio']:>5}x"
        print(line if row["is_equal"] else f"{line}  outputs differ: no ratio")
    print("\nselect       M    E   K  T before -> after   median us (IQR)")
    for row in result["select"]:
        line = f"{row['policy']:<9} {row['M']:>4} {row['E']:>4} {row['K']:>3}"
        line += f"  {row['T_before']:>8} -> {row['T_after']:<5}"
        if row["is_equal"]:
            line += f"  {row['median_us']:>8} ({row['iqr_us']})"
        print(line if row["is_equal"] else f"{line}  differs from the reference: no time")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/cpu/kernels.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {
        "header": header(arguments),
        "fused_moe": bench_moe(arguments.repeats, getattr(torch, arguments.dtype)),
        "select": bench_select(arguments.repeats),
    }
    print_tables(result)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row["is_equal"] for row in result["fused_moe"] + result["select"]) else 1


if __name__ == "__main__":
    sys.exit(main())
