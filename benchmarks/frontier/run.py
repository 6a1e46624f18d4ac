"""The quality frontier: every policy's quality at every number of active experts.

    python -m benchmarks.frontier.run models/lynx-moe-tiny    # all stages, or those left
    python -m benchmarks.frontier.run models/A models/B --stage calibrate sweep curves

Stages, in order: `calibrate` (training problems), `sweep` and `ablation` (validation problems),
`curves` and `answers` (test problems, with what the sweep chose). One JSON row for each setting in
benchmarks/results/cpu/frontier/<model>.jsonl; benchmarks/frontier/report.py makes the report.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from benchmarks.frontier.bench import ROOT, SEEDS, Bench
from benchmarks.frontier.candidates import ANSWERED
from benchmarks.frontier.results import Results
from loadtests.progress import Stages

ROWS = (4, 8, 16, 32, 64)
STAGES = ("calibrate", "sweep", "ablation", "curves", "answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES)
    parser.add_argument("--problems", type=int, default=256, help="of a split (%(default)s)")
    parser.add_argument("--answers", type=int, default=1000, help="free-running (%(default)s)")
    parser.add_argument(
        "--answered", nargs="+", choices=ANSWERED, default=ANSWERED, help="published policies there"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="M (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/cpu/frontier")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stages = Stages(
        *(f"{folder.name}: {stage}" for folder in arguments.models for stage in arguments.stage)
    )
    for folder in arguments.models:
        about = {
            "model": folder.name,
            "machine": platform.machine(),
            "torch": torch.__version__,
            "problems": arguments.problems,
            "seeds": SEEDS,
        }
        results = Results(arguments.out / f"{folder.name}.jsonl", about)
        bench = Bench(
            folder,
            results,
            arguments.problems,
            arguments.answers,
            tuple(arguments.rows),
            tuple(arguments.answered),
        )
        run = {
            "calibrate": bench.calibrate,
            "sweep": bench.sweep,
            "ablation": bench.ablation,
            "curves": bench.curves,
            "answers": bench.answer,
        }
        for stage in arguments.stage:
            with stages.next():
                run[stage]()


if __name__ == "__main__":
    main()
