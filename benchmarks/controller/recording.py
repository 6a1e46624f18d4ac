"""The demo's load on two servers: SGLang's forward passes on a plain one, Lynx's decisions.

    python -m benchmarks.controller.recording passes      # 3 minutes
    python -m benchmarks.controller.recording decisions   # 2 minutes

The first derives SLO and rates, as the demo does, and writes passes.jsonl and load.json. The second
gives the same load to Lynx and writes decisions.jsonl. With --sweep the clock sets the cap instead
of the law: caps then do not depend on the machine's speed, so that the log shows what they save.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import cycle
from pathlib import Path

from loadtests import calibration, demo
from loadtests.server import Server
from loadtests.shapes import Shape

COMMON = f"--prefill-decode-interval={demo.PREFILL_INTERVAL}"
CAPS, PERIOD_S = (63, 30, 24, 18), 1.0  # 63, so that selection runs at all of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("passes", "decisions"))
    parser.add_argument("--model", type=Path, default=Path("models/lynx-moe-tiny"))
    parser.add_argument("--out", type=Path, default=Path("build/recording"))
    parser.add_argument("--high-s", type=float, default=60.0, help="length of the high load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", action="store_true", help="caps in turn, by the clock")
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part == "passes":
        record_passes(options)
    else:
        record_decisions(options)


def record_passes(options: argparse.Namespace) -> None:
    out = options.out
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/passes"
        published = ("--enable-forward-pass-metrics", f"--forward-pass-metrics-ipc-name={endpoint}")
        with Server(options.model, out / "sglang.log", (COMMON, *published)) as server:
            unloaded = calibration.measure(server.url, 1, demo.UNLOADED_S)
            loaded = calibration.measure(server.url, demo.STREAMS, demo.LOADED_S)
            slo_ms = demo.slo(unloaded, loaded, demo.SLO_SHARE)
            shape = demo.shape_of(loaded, options.high_s)
            load = {"slo_ms": slo_ms, "shape": str(shape)}
            (out / "load.json").write_text(json.dumps(load) + "\n")
            recorder_of = (sys.executable, "-m", "benchmarks.controller.record_passes")
            command = [*recorder_of, f"{endpoint}.0", str(out / "passes.jsonl")]
            with subprocess.Popen(command) as recorder:
                try:
                    demo.load("sglang", server, shape, slo_ms, options)
                finally:
                    recorder.terminate()


def record_decisions(options: argparse.Namespace) -> None:
    out = options.out
    load = json.loads((out / "load.json").read_text())
    slo_ms = load["slo_ms"]
    decided = (
        "--moe-backend=lynx",
        f"--lynx-slo-itl-ms={slo_ms}",
        f"--lynx-decision-log={out / 'decisions.jsonl'}",
    )
    with Server(options.model, out / "lynx.log", (COMMON, *decided)) as server:
        calibration.measure(server.url, 1, demo.WARM_UP_S)
        with sweep(server) if options.sweep else nullcontext():
            demo.load("lynx", server, Shape.parse(load["shape"]), slo_ms, options)


@contextmanager
def sweep(server: Server) -> Iterator[None]:
    """Each of CAPS in turn, for PERIOD_S each, until the block ends."""
    is_over = threading.Event()

    def turn() -> None:
        for cap in cycle(CAPS):
            fixed = {"lynx_budget": cap, "lynx_demand": 1}  # the demand too, or the law goes on
            server.post("/set_internal_state", {"server_args": fixed})
            if is_over.wait(PERIOD_S):
                return

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    main()
