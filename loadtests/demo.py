"""The demo: one load step on plain SGLang, on Lynx under an SLO, and on Lynx without one.

    python -m loadtests.demo --model models/lynx-moe-tiny --out build/demo

The SLO and the request rates come from the plain server's times in the same run, so that the SLO
binds and can be met on any machine. Writes ``report.json``, ``series.json``, ``demo.png``,
``demo-details.png`` and the raw records under ``--out``; exit code 1 if a bar fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests import calibration, picture, report
from loadtests.bars import judge
from loadtests.calibration import Pace
from loadtests.monitor import Monitor, Sample
from loadtests.progress import Stages, say
from loadtests.record import Record, read
from loadtests.series import Demo, Series
from loadtests.server import Server, stop_with_me
from loadtests.shapes import Plateau, Shape
from models.widen import widen

# The SLO lies this share of the way from the median unloaded ITL to the median loaded one. A decode
# step of the loaded plain server takes longer than the SLO, a step on few experts less.
SLO_SHARE = 0.9
# The bundled model is so small that a CPU's fixed costs per operation hide its experts. Experts of
# eight times the width compute the same function and cost a share of a step as in a real model
# (models/widen.py).
WIDTH = 8
# Decode steps between two prefills, on both servers. A prefill then lies in fewer than 5 % of gaps;
# otherwise no choice of experts could meet a p95 SLO.
PREFILL_INTERVAL = 24
# Request rates, as shares of what the plain server answers with STREAMS requests running.
STREAMS = 16
LOW_SHARE, HIGH_SHARE = 0.1, 1.0
LOW_S, HIGH_S = 15.0, 80.0
UNLOADED_S, LOADED_S, WARM_UP_S = 8.0, 20.0, 4.0
FULL_BUDGET = -1  # as /set_internal_state spells it
STAGES = (
    "start plain SGLang",
    "measure it with one stream",
    "measure it with all streams",
    "load plain SGLang",
    "start Lynx",
    "warm it up",
    "load Lynx",
    "load Lynx at full budget: the kernels alone",
    "draw the pictures",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one server: raw records, Locust's summary, Lynx's state over time."""

    name: str
    records: list[Record]
    summary: dict[str, Any]
    samples: list[Sample]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/lynx-moe-tiny"))
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and problems")
    parser.add_argument(
        "--width", type=int, default=WIDTH, help="experts are this many times as wide; 1: as stored"
    )
    parser.add_argument("--slo-share", type=float, default=SLO_SHARE)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--high-s", type=float, default=HIGH_S, help="length of the high load")
    options = parser.parse_args()
    stop_with_me()
    began_s = time.monotonic()
    stages = Stages(*STAGES)

    model = options.model
    if options.width != 1:
        model = widen(model, options.out / f"{model.name}-x{options.width}", options.width)
    common = (f"--prefill-decode-interval={PREFILL_INTERVAL}",)
    with ExitStack() as stack:
        with stages.next():
            server = stack.enter_context(Server(model, options.out / "sglang.log", common))
        with stages.next(UNLOADED_S):
            unloaded = calibration.measure(server.url, 1, UNLOADED_S)
        with stages.next(LOADED_S):
            loaded = calibration.measure(server.url, options.streams, LOADED_S)
        slo_ms = slo(unloaded, loaded, options.slo_share)
        shape = shape_of(loaded, options.high_s)
        say(f"{explain(unloaded, loaded)}\nSLO: {slo_ms:g} ms, load: {shape}")
        with stages.next(shape.duration_s):
            plain = load("sglang", server, shape, slo_ms, options)
    lynx_options = (*common, "--moe-backend=lynx", f"--lynx-slo-itl-ms={slo_ms}")
    with ExitStack() as stack:
        with stages.next():
            server = stack.enter_context(Server(model, options.out / "lynx.log", lynx_options))
        with stages.next(WARM_UP_S):
            calibration.measure(server.url, 1, WARM_UP_S)
        with stages.next(shape.duration_s):
            lynx = load("lynx", server, shape, slo_ms, options)
        server.post("/set_internal_state", {"server_args": {"lynx_budget": FULL_BUDGET}})
        with stages.next(shape.duration_s):
            full = load("lynx-full", server, shape, slo_ms, options)

    fell_s = shape.edges_s[-2]
    runs = [
        report.row(run.name, run.records, run.summary, run.samples, fell_s)
        for run in (plain, lynx, full)
    ]
    bars = judge(runs[0], runs[1])
    document = report.document(slo_ms, runs) | {
        "calibration": {"unloaded": asdict(unloaded), "loaded": asdict(loaded)},
        "model": model.name,
        "slo_share": options.slo_share,
        "shape": str(shape),
        "seed": options.seed,
        "bars": [asdict(bar) for bar in bars],
        "wall_s": round(time.monotonic() - began_s, 1),
    }
    (options.out / "report.json").write_text(json.dumps(document, indent=2) + "\n")
    series = [
        Series.of(run.name, run.records, run.summary, run.samples, shape.duration_s)
        for run in (plain, lynx, full)
    ]
    over_time = Demo(document["command"], slo_ms, list(shape.edges_s), series)
    over_time.write(options.out / "series.json")
    with stages.next():
        picture.draw(options.out, over_time)
    print(report.table(document), *bars, sep="\n")
    print(f"written in {options.out}: report.json, series.json, demo.png, demo-details.png")
    return 0 if all(bar.is_met for bar in bars) else 1


def slo(unloaded: Pace, loaded: Pace, share: float) -> float:
    """Between the plain server's unloaded and loaded times, to a tenth of a millisecond."""
    return round(unloaded.itl_p50_ms + share * (loaded.itl_p50_ms - unloaded.itl_p50_ms), 1)


def shape_of(loaded: Pace, high_s: float) -> Shape:
    """A step up to the load that keeps about ``loaded.streams`` requests running, and down."""
    low, high = (round(share * loaded.answers_per_s, 3) for share in (LOW_SHARE, HIGH_SHARE))
    return Shape((Plateau(LOW_S, low), Plateau(high_s, high), Plateau(LOW_S, low)))


def load(
    name: str, server: Server, shape: Shape, slo_ms: float, options: argparse.Namespace
) -> Run:
    """Run the Locust file against ``server`` while watching its Lynx state."""
    out = options.out / name
    server.post("/flush_cache", {})  # every run computes its own prompts
    command = [
        *(sys.executable, "-m", "locust", "--headless", "--only-summary", "--loglevel=WARNING"),
        *("-f", str(Path(__file__).with_name("locustfile.py")), "--host", server.url),
        *("--shape", str(shape), "--seed", str(options.seed), "--out", str(out)),
        *("--slo-itl-ms", str(slo_ms), "--slo-attainment", "0"),
    ]
    with Monitor(server.lynx) as monitor, (options.out / f"{name}.locust.log").open("wb") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    summary = json.loads((out / "summary.json").read_text())
    return Run(name, read(out / "requests.jsonl"), summary, monitor.samples)


def explain(unloaded: Pace, loaded: Pace) -> str:
    return (
        f"plain SGLang: ITL p50 {unloaded.itl_p50_ms:.1f} ms with one stream, "
        f"p50 {loaded.itl_p50_ms:.1f} and p95 {loaded.itl_p95_ms:.1f} ms with {loaded.streams}"
    )


if __name__ == "__main__":
    sys.exit(main())
