"""End to end: a real SGLang server, plain and with Lynx, at constant batches.

    make gpu-e2e                       # on a GPU; rows go to build/gpu/e2e.jsonl as they come
    make gpu-e2e ARGS=--dry-run        # the same driver and servers at a toy size, on a CPU

Shape of Qwen3-30B-A3B, dummy weights, prompts of random tokens; e2e_model.py says how the routers
were made. Plain SGLang comes first, then one Lynx server that takes its budgets at run time: full,
75, 50 and 30 % of the experts that the same batch activates at full, and an SLO of SLO_SHARE of
full's median gap. Each server runs the published skew first, then even routing. When the time is
up, the server is stopped; the rows so far are in the file. Quoted rows go to
benchmarks/results/<gpu>/.

Before that, shadow passes of every step hold the Lynx server against itself: under a cap that cuts
nothing its KL to the full model is 0, at half of the active experts it is not. A KL that is
otherwise fails the run, at its end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.gpu.e2e_client import Load, change, measure
from benchmarks.gpu.e2e_model import (
    QWEN3_30B,
    ROUTERS,
    TINY,
    Shape,
    write_model,
    write_router,
    write_sensitive,
)
from benchmarks.gpu.e2e_quality import compared, fault_of
from loadtests.server import Server

ROOT = Path(__file__).parents[2]
BATCHES = (16, 1, 32, 8, 64)  # the bar's own first
SHARES = (1.0, 0.75, 0.5, 0.3)  # of the uncapped T
SLO_SHARE = 0.75
READY_S = 240.0  # of each server
COMPILATION_S = 60.0  # at most, after the plain server is ready
STOP_S = 3.0  # before SIGKILL: less than the time that all.sh leaves after its own SIGTERM
COMMON = (
    "--load-format=dummy",
    "--skip-tokenizer-init",
    "--disable-radix-cache",
    "--grammar-backend=none",
    "--decode-log-interval=8",
)
ON_GPU = (
    "--device=cuda",
    "--mem-fraction-static=0.85",
    "--max-total-tokens=32768",
    "--max-running-requests=64",
    "--attention-backend=triton",
    "--sampling-backend=pytorch",
    "--cuda-graph-backend-prefill=disabled",
    "--cuda-graph-bs-decode",
    *map(str, sorted(BATCHES)),
)
ON_CPU = (
    "--device=cpu",
    "--dtype=float32",
    "--mem-fraction-static=0.1",
    "--max-total-tokens=20000",
    "--max-running-requests=64",
)
LYNX = ("--moe-backend=lynx", "--lynx-budget=full")


class TimeIsUp(Exception):
    """Raised in the main thread, in whatever it waits for."""


def ring(*_: object) -> None:
    raise TimeIsUp


def measured(
    server: Server, side: str, router: str, load: Load, batches: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Rows of one server under one router."""
    for rows in batches:
        head = {"router": router, "side": side}
        if side == "sglang":
            yield head | measure(server, load, rows).row(rows)
            continue
        full: dict[str, Any] = {}
        for share in SHARES:
            budget = -1 if share == 1.0 else max(1, round(share * full["active_experts"]))
            change(server, budget=budget, demand=1.0, slo_itl_ms=0)
            row = head | {"setting": f"{share:.0%}"} | measure(server, load, rows).row(rows)
            full = full or row
            yield row | {"budget": budget if budget > 0 else None}
        slo_ms = round(SLO_SHARE * full["itl_p50_ms"], 3)
        change(server, budget=0, demand=-1, slo_itl_ms=slo_ms)
        measure(server, load, rows)  # the controller settles
        row = head | {"setting": "slo"} | measure(server, load, rows).row(rows)
        yield row | {"slo_itl_ms": slo_ms}


def rows_of(
    shape: Shape, load: Load, batches: tuple[int, ...], *, is_dry_run: bool, end_s: float
) -> Generator[dict[str, Any]]:
    """Rows of both servers, plain SGLang's first. Raises TimeIsUp at end_s, with no server left."""
    folder = (ROOT / "build" / "gpu" / "e2e").resolve()
    make_importable(folder / "site")
    model = write_model(folder / "model", shape)
    routers = {name: write_router(folder / name, shape, name) for name in ROUTERS}
    sensitive = write_sensitive(folder / "sensitive", shape)
    base = (*COMMON, *(ON_CPU if is_dry_run else ON_GPU))
    for side, extra in (("sglang", ()), ("lynx", LYNX)):
        began_s = time.monotonic()
        if began_s > end_s:
            raise TimeIsUp
        with ExitStack() as stack:
            server = Server(model, folder / f"{side}.log", extra, base=base)
            stack.callback(server.stop, STOP_S)
            compiler = compile_ahead(stack, folder, is_dry_run) if side == "sglang" else None
            signal.setitimer(signal.ITIMER_REAL, max(0.001, end_s - time.monotonic()))
            stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)  # it stops in its own time
            server.wait_ready(READY_S)
            if compiler is not None:
                await_end(compiler)  # its processes would slow the server that is timed
            print(f"{side}: ready after {time.monotonic() - began_s:.0f} s", flush=True)
            if side == "lynx":
                load_weights(server, sensitive)
                yield from compared(server, shape, load, batches[0])
            for router, weights in routers.items():
                load_weights(server, weights)
                measure(server, load, batches[0])  # warm-up
                yield from measured(server, side, router, load, batches)


def compile_ahead(stack: ExitStack, folder: Path, is_dry_run: bool) -> subprocess.Popen[bytes]:
    """Compile Lynx's kernels for the captured batches while the plain server loads."""
    program = (sys.executable, "-m", "benchmarks.gpu.compilation", "--model=qwen3-30b")
    options = ("--batches", *map(str, BATCHES), *(("--dry-run",) if is_dry_run else ()))
    with (folder / "compilation.log").open("wb") as output:
        process = subprocess.Popen(
            [*program, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,  # one id ends it and its workers
        )
    stack.callback(end, process)
    return process


def await_end(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(COMPILATION_S)
    end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def load_weights(server: Server, folder: Path) -> None:
    body = {"model_path": str(folder), "load_format": "safetensors"}
    reply = server.post("/update_weights_from_disk", body)
    if not reply["success"]:
        raise RuntimeError(f"weights of {folder}: {reply['message']}")


def make_importable(folder: Path) -> None:
    """Let server processes find this checkout, and SGLang its entry points, without installing."""
    paths = [str(ROOT / name) for name in (".", "kernels", "controller")]
    try:
        importlib.metadata.distribution("lynx-sglang")
    except importlib.metadata.PackageNotFoundError:
        info = folder / "lynx_sglang-0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lynx-sglang\nVersion: 0\n")
        (info / "entry_points.txt").write_text(
            "[sglang.srt.plugins]\nlynx = lynx_sglang.integration.plugin:register\n"
            "[sglang.srt.platforms]\nlynx_cpu = lynx_sglang.cpu.entry_point:activate\n"
        )
        paths.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


def header(is_dry_run: bool) -> dict[str, Any]:
    def said(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return done.stdout.strip() or "unknown"

    query = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return {
        "device": "CPU, dry run" if is_dry_run else said(*query),
        "versions": {
            name: importlib.metadata.version(name) for name in ("sglang", "torch", "triton")
        },
        "commit": said("git", "rev-parse", "--short", "HEAD"),
        "command": command(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def show(row: dict[str, Any], plain: dict[tuple[str, int], float]) -> None:
    """One line; the ratio is plain SGLang's median gap over this one."""
    key = (row["router"], row["batch"])
    gap_ms = row["itl_p50_ms"]  # 0 where most tokens came together
    gain = f"{plain[key] / gap_ms:.2f}x" if key in plain and gap_ms else ""
    kl = f"KL {row['kl']} of {row['kl_rows']} rows" if "kl_rows" in row else ""
    name = f"{row['side']} {row.get('setting', '')}"
    experts = row["active_experts"]
    print(
        f"{row['router']:8} {name:12} batch {row['batch']:3}  TPOT {row['tpot_ms']:7.2f}  "
        f"ITL p50 {row['itl_p50_ms']:7.2f} p95 {row['itl_p95_ms']:7.2f} ms  "
        f"{row['tokens_per_s']:8.0f} tok/s  T {'-' if experts is None else f'{experts:.1f}':>5}  "
        f"graphs {row['graph_share']}  {gain or kl}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="a toy model on a CPU")
    parser.add_argument("--limit-min", type=float, default=9.25)
    parser.add_argument("--batches", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu" / "e2e.jsonl")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the server with it
    signal.signal(signal.SIGALRM, ring)
    shape: Shape = TINY if options.dry_run else QWEN3_30B
    load = Load(shape.vocab_size, gaps=24 if options.dry_run else 96, rounds=options.rounds or 2)
    batches = tuple(options.batches or ((4, 1) if options.dry_run else BATCHES))
    end_s = time.monotonic() + 60 * options.limit_min
    options.out.parent.mkdir(parents=True, exist_ok=True)

    plain: dict[tuple[str, int], float] = {}
    all_rows = rows_of(shape, load, batches, is_dry_run=options.dry_run, end_s=end_s)
    num_rows, is_time_up = 0, False
    faults: list[str] = []
    with options.out.open("a") as out:
        out.write(json.dumps(header(options.dry_run)) + "\n")
        out.flush()
        try:
            with closing(all_rows):
                for row in all_rows:
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                    num_rows += 1
                    faults += filter(None, [fault_of(row)])
                    if row["side"] == "sglang":
                        plain[row["router"], row["batch"]] = row["itl_p50_ms"]
                    show(row, plain)
        except TimeIsUp:
            is_time_up = True
    print(f"{'time is up' if is_time_up else 'done'}: {num_rows} rows are in {options.out}")
    for fault in faults:
        print(f"FAIL {fault}")
    return int(num_rows == 0 or bool(faults))


if __name__ == "__main__":
    sys.exit(main())
