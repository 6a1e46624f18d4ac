"""What sketches do on a real server: calibrate, serve with and without them, evaluate both.

    python -m benchmarks.sketches.served models/lynx-moe-tiny

Both servers keep the same share of the experts that a step would use. The questions are the test
problems of the bundled tasks; the sketches are fitted on training problems.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.decode_step import machine
from loadtests.server import Server, stop_with_me
from models.traffic import traffic

ROOT = Path(__file__).parents[2]
OUT = ROOT / "benchmarks/results/cpu/sketches_served.json"
LYNX = str(Path(sys.executable).with_name("lynx-sglang"))
FIGURES = (
    "point", "active_experts", "retained_mass", "accuracy", "kl", "kl_interval_95", "kl_p99",
    "agreement",
)  # fmt: skip


def run(*arguments: str) -> None:
    subprocess.run([LYNX, *arguments], check=True)


def evaluated(model: Path, calibration: Path, folder: Path, count: int) -> list[dict[str, Any]]:
    """Figures of a server at full budget and at two shares, 16 requests at a time."""
    options = ["--moe-backend=lynx", "--lynx-budget=full", f"--lynx-calibration={calibration}"]
    with Server(model, folder / "server.log", [*options, "--sleep-on-idle"]) as server:
        run(
            "eval", "--url", server.url, "--out", str(folder), "--budgets", "full",
            "--shares", "50%,30%", "--concurrency", "16", "--count", str(count), "--alone", "2",
            "--max-tokens", "160",
        )  # fmt: skip
    legs = json.loads((folder / "report.json").read_text())["legs"]
    return [{name: leg.get(name) for name in FIGURES} for leg in legs if leg["concurrency"] == 16]


def measured(model: Path, sketch_bytes: str, tokens: int, count: int) -> dict[str, Any]:
    """One model's figures with a refill and with sketches."""
    folder = ROOT / "build/sketches" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    text, made = folder / "train.jsonl", folder / "calibration.json"
    text.write_text("".join(json.dumps(row) + "\n" for row in traffic("train", 400, seed=5)))
    if not made.exists():
        run(
            "calibrate", "--model-path", str(model), "--device", "cpu", "--text", str(text),
            "--tokens", str(tokens), "--out", str(made), "--sketch-bytes", sketch_bytes,
        )  # fmt: skip
    without = folder / "without.json"
    values = json.loads(made.read_text())
    without.write_text(json.dumps({**values, "sketches": None}))
    return {
        "command": command(),
        "machine": machine(),
        "sketches": values["sketches"],
        "refill": evaluated(model, without, folder / "refill", count),
        "sketch": evaluated(model, made, folder / "sketch", count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--sketch-bytes", default="5%", help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=16384, help="of the text (%(default)s)")
    parser.add_argument("--count", type=int, default=300, help="questions of a task (%(default)s)")
    args = parser.parse_args()
    stop_with_me()
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    found[args.model.name] = measured(args.model, args.sketch_bytes, args.tokens, args.count)
    OUT.write_text(json.dumps(found, indent=2) + "\n")
    for form in ("refill", "sketch"):
        for leg in found[args.model.name][form]:
            print(form, leg)


if __name__ == "__main__":
    main()
