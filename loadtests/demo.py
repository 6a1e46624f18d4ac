"""The demo: one load step on plain SGLang, on Lynx under an SLO, and on Lynx without one.

    python -m loadtests.demo --model models/lynx-moe-tiny --out build/demo

The SLO and the request rates are derived from the plain server's own times in this run, so that
the load is a real one and the SLO both binding and feasible on any machine. Writes
``report.json``, ``series.json``, ``demo.png``, ``demo-details.png`` and the raw records under
``--out``; exit code 1 if a bar fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests import calibration, picture, report
from loadtests.bars import judge
from loadtests.calibration import Pace
from loadtests.monitor import Monitor, Sample
from loadtests.record import Record, read
from loadtests.series import Demo, Series
from loadtests.server import Server, stop_with_me
from loadtests.shapes import Plateau, Shape
from models.widen import widen

# The SLO lies this share of the way from the unloaded ITL to the loaded one, medians both: a decode
# step of the loaded plain server is over it, one on few experts under it.
SLO_SHARE = 0.9
# The model in the repository is so small that a CPU's fixed costs per operation hide its experts.
# Eight times wider ones, the same function, weigh in a step as a real model's do (models/widen.py).
WIDTH = 8
# Decode steps that both servers run between prefills, so that fewer than 5 % of gaps hold one: a
# p95 promise could not be kept otherwise, by any choice of experts.
PREFILL_INTERVAL = 24
# Request rates, as shares of what the plain server answers with STREAMS requests running.
STREAMS = 16
LOW_SHARE, HIGH_SHARE = 0.1, 1.0
LOW_S, HIGH_S = 15.0, 80.0
UNLOADED_S, LOADED_S, WARM_UP_S = 8.0, 20.0, 4.0
FULL_BUDGET = -1  # as /set_internal_state spells it


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

    model = options.model
    if options.width != 1:
        model = widen(model, options.out / f"{model.name}-x{options.width}", options.width)
    common = (f"--prefill-decode-interval={PREFILL_INTERVAL}",)
    with Server(model, options.out / "sglang.log", common) as server:
        say(began_s, "plain SGLang is up; measuring it unloaded and loaded")
        unloaded = calibration.measure(server.url, 1, UNLOADED_S)
        loaded = calibration.measure(server.url, options.streams, LOADED_S)
        slo_ms = slo(unloaded, loaded, options.slo_share)
        shape = shape_of(loaded, options.high_s)
        say(began_s, f"SLO {slo_ms:g} ms; {explain(unloaded, loaded)}; load {shape}")
        plain = load("sglang", server, shape, slo_ms, options)
    lynx_options = (*common, "--moe-backend=lynx", f"--lynx-slo-itl-ms={slo_ms}")
    with Server(model, options.out / "lynx.log", lynx_options) as server:
        say(began_s, "Lynx is up; the same load")
        calibration.measure(server.url, 1, WARM_UP_S)
        lynx = load("lynx", server, shape, slo_ms, options)
        say(began_s, "the same load once more, at full budget: what the kernel alone brings")
        server.post("/set_internal_state", {"server_args": {"lynx_budget": FULL_BUDGET}})
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
        f"plain ITL p50 {unloaded.itl_p50_ms:.1f} ms alone, p50 {loaded.itl_p50_ms:.1f} and "
        f"p95 {loaded.itl_p95_ms:.1f} ms with {loaded.streams} streams"
    )


def say(began_s: float, text: str) -> None:
    print(f"[{time.monotonic() - began_s:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
