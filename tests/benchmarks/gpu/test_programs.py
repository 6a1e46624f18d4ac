"""The GPU benchmarks start: their own code, on a CPU, interpreted, at tiny sizes.

The check does so as a stage of all.sh, in test_all.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.gpu.{program}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_benchmark_writes_right_rows_as_they_come(tmp_path):
    path = tmp_path / "rows.jsonl"
    run("bench", "--dry-run", "--out", str(path))
    header, bandwidth, *rows = (json.loads(line) for line in path.read_text().splitlines())
    assert header["device"] == "CPU, dry run"
    assert bandwidth["copy_tb_s"] > 0
    assert {row["side"] for row in rows} >= {"layer", "fused", "fused tma", "select"}
    for row in rows:
        if row["side"] in ("layer", "fused", "fused tma"):
            assert row["error"] < 1e-5
            assert row["median_us"] > 0


def test_the_sweep_prints_a_row_for_the_table(tmp_path):
    printed = run("tune", "--dry-run", "--out", str(tmp_path / "rows.jsonl"))
    assert "): Tiles(gate_up=GemmTiles(" in printed


HANG = """
import sys, time
sys.argv.append("--dry-run")
from benchmarks.gpu import harness
harness.GRACE_S = 0.1
harness.Clock(limit_min=0.0)
time.sleep(60)
"""


def test_a_result_that_does_not_come_ends_the_program():
    done = subprocess.run(
        [sys.executable, "-c", HANG], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 1
    assert "no result 0.1 s after the time was up" in done.stdout
    assert 'File "<string>", line 7' in done.stderr  # where it slept


def test_a_program_that_is_terminated_says_where_it_was():
    source = HANG.replace("time.sleep(60)", "print('waits', flush=True); time.sleep(60)")
    source = source.replace("GRACE_S = 0.1", "GRACE_S = 60")
    command = [sys.executable, "-c", source]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.terminate()
        assert 'File "<string>", line 7' in process.stderr.read()
    assert process.returncode == -signal.SIGTERM


def test_predictions_are_those_on_file():
    printed = run("model").splitlines()
    on_file = (ROOT / "benchmarks/gpu/PREDICTIONS.md").read_text().splitlines()
    assert printed[2:] == on_file[2:]
