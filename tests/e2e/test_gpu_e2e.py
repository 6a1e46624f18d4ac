"""`make gpu-e2e ARGS=--dry-run`: both servers, every setting, on this CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.e2e_quality import CUT_KL, SHADOW_GAPS, UNCUT_KL

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def test_the_dry_run_has_a_row_of_every_setting(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    program = (sys.executable, "-m", "benchmarks.gpu.e2e")
    command = [*program, "--dry-run", "--batches", "4", "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    header, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert header["device"] == "CPU, dry run"
    lynx = [("lynx", setting) for setting in ("100%", "75%", "50%", "30%", "slo")]
    for router in ("skewed", "uniform"):
        found = [(row["side"], row.get("setting")) for row in rows if row["router"] == router]
        assert found == [("sglang", None), *lynx]
    assert all(row["itl_p50_ms"] > 0 and row["batch"] == 4 for row in rows)
    uncut, half = (row for row in rows if row["router"] == "sensitive")
    assert (uncut["setting"], half["setting"]) == ("uncut", "half")
    assert uncut["kl"] <= UNCUT_KL < CUT_KL <= half["kl"]
    assert uncut["kl_rows"] == half["kl_rows"] > 4 * SHADOW_GAPS
    assert half["active_experts"] < 0.7 * uncut["active_experts"]
    shared = [row["active_experts"] for row in rows if row.get("setting") == "30%"]
    full = [row["active_experts"] for row in rows if row.get("setting") == "100%"]
    assert all(few < many for few, many in zip(shared, full, strict=True))
