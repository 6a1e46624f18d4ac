"""Decode step of a real server on this CPU: plain SGLang, Lynx at full quality, Lynx at a cap.

    make bench
    python -m benchmarks.decode_step --width 8 --calibration FILE --share 0.3   with sketches, too

All servers run at once (idle ones sleep) and take turns, round after round, on the same prompts of
the bundled model, so that other load on the machine slows all alike. No ratio is printed unless
Lynx at full quality answers token for token as plain SGLang does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.command import command
from loadtests.progress import Stages, track
from loadtests.server import Server, stop_with_me
from models.tasks import problems
from models.widen import widen

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/cpu"
VARIANTS = {
    "sglang": (),
    "lynx full": ("--moe-backend=lynx", "--lynx-budget=full"),
    "lynx {cap}": ("--moe-backend=lynx", "--lynx-budget={cap}"),
}


def calibrated(file: Path, share: float) -> dict[str, tuple[str, ...]]:
    """Servers at a share of the uncapped experts: with the calibration's sketches, and without."""
    without = ROOT / "build/bench/without_sketches.json"
    without.write_text(json.dumps({**json.loads(file.read_text()), "sketches": None}))
    return {
        f"{form} {share:.0%}": (
            "--moe-backend=lynx",
            f"--lynx-calibration={path}",
            f"--lynx-share={share}",
        )
        for form, path in (("refill", without), ("sketch", file))
    }


def prompts_of(count: int) -> list[str]:
    """Chat prompts of both tasks, from the training side of the split."""
    each = [problems(task, "train", (count + 1) // 2, seed=11) for task in ("math", "code")]
    texts = [problem.prompt for pair in zip(*each, strict=True) for problem in pair]
    return [
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in texts[:count]
    ]


def generate(server: Server, prompts: list[str], tokens: int, *, ignore_eos: bool) -> Any:
    params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": ignore_eos}
    return server.post("/generate", {"text": prompts, "sampling_params": params})


def step_ms(server: Server, prompts: list[str], tokens: int) -> float:
    """Time per decode step at a constant batch: the prefill's share is taken off."""
    times_s = []
    for count in (1, tokens):
        began_s = time.perf_counter()
        generate(server, prompts, count, ignore_eos=True)
        times_s.append(time.perf_counter() - began_s)
    return (times_s[1] - times_s[0]) * 1e3 / (tokens - 1)


def active_experts(server: Server) -> tuple[int, float]:
    """Decode steps so far, and the sum over them of a layer's mean active experts."""
    part = server.get("/server_info")["internal_states"][0]["lynx"]
    return part["decode_steps"], part["active_experts_sum"]


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "q1": low, "q3": high}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", type=Path, default=ROOT / "models/lynx-moe-tiny")
    parser.add_argument("--width", type=int, default=1, help="of the experts, times as stored")
    parser.add_argument("--rows", type=int, default=16, help="running requests (%(default)s)")
    parser.add_argument("--cap", default="25%", help="fixed --lynx-budget (%(default)s)")
    parser.add_argument("--calibration", type=Path, help="with sketches, of the model as widened")
    parser.add_argument("--share", type=float, default=0.3, help="with it (%(default)s)")
    parser.add_argument("--rounds", type=int, default=13)
    # Within an answer: past its end a batch falls into one common loop, on few experts.
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/cpu/decode_step.json"
    )
    args = parser.parse_args()
    stop_with_me()
    prompts = prompts_of(args.rows)
    model = args.model_path
    if args.width != 1:
        model = widen(model, ROOT / "build/bench" / f"{model.name}-x{args.width}", args.width)

    named = {name.format(cap=args.cap): options for name, options in VARIANTS.items()}
    if args.calibration is not None:
        named |= calibrated(args.calibration, args.share)
    stages = Stages(*(f"start {name}" for name in named), "compare answers", "time decode steps")
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name, options in named.items():
            filled = [option.format(cap=args.cap) for option in options]
            log = ROOT / "build/bench" / f"{len(servers)}.log"
            with stages.next():
                server = Server(model, log, ["--sleep-on-idle", *filled])
                servers[name] = stack.enter_context(server)
        plain, full, *capped = servers
        with stages.next():
            answers = {
                name: [
                    each["output_ids"] for each in generate(server, prompts, 96, ignore_eos=False)
                ]
                for name, server in servers.items()
            }
        if answers[plain] != answers[full]:
            print("FAILED: Lynx at full quality does not answer as plain SGLang does")
            return 1
        counts = {name: active_experts(servers[name]) for name in (full, *capped)}
        times: dict[str, list[float]] = {name: [] for name in servers}
        with stages.next():
            for _ in track(range(args.rounds), "round", lambda _: "every server"):
                for name, server in servers.items():
                    times[name].append(step_ms(server, prompts, args.tokens))
        active = {}
        for name, (steps, total) in counts.items():
            now_steps, now_total = active_experts(servers[name])
            active[name] = (now_total - total) / (now_steps - steps)

    report: dict[str, Any] = {
        "command": command(),
        "machine": machine(),
        "model": model.name,
        "rows": args.rows,
        "step_ms": {name: spread(values) for name, values in times.items()},
        "speedup": {
            name: spread([a / b for a, b in zip(times[plain], values, strict=True)])
            for name, values in times.items()
        },
        "active_experts": active,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{args.rows} running requests, {args.rounds} rounds, median [quartiles]")
    for name in servers:
        ms, gain = report["step_ms"][name], report["speedup"][name]
        experts = f"{active[name]:5.1f} active experts" if name in active else ""
        print(
            f"{name:>10}: {ms['median']:6.2f} ms [{ms['q1']:.2f}, {ms['q3']:.2f}]  "
            f"{gain['median']:.2f}x [{gain['q1']:.2f}, {gain['q3']:.2f}]  {experts}"
        )
    return 0


def machine() -> dict[str, Any]:
    def run(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()

    model = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": model[0].split(":")[1].strip() if model else "unknown",
        "cores": run("nproc"),
        "commit": run("git", "rev-parse", "--short", "HEAD"),
    }


if __name__ == "__main__":
    sys.exit(main())
