"""``lynx-sglang eval`` and ``calibrate`` on the bundled model: interrupted, resumed, served."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.server import Server
from models.traffic import traffic
from tests.e2e.forkserver import ForkedServer, ForkServer, refusal

pytestmark = pytest.mark.e2e

LYNX = str(Path(sys.executable).with_name("lynx-sglang"))
Settings = Callable[..., bool]


def evaluation(server: Server, out: Path, *options: str) -> list[str]:
    return [
        LYNX, "eval", "--url", server.url, "--out", str(out), "--budgets", "full,25%",
        "--shares", "50%", "--demands", "0.5", "--concurrency", "8", "--count", "8",
        "--alone", "2", "--max-tokens", "160", *options,
    ]  # fmt: skip


def answers(out: Path) -> int:
    rows = out / "rows.jsonl"
    return rows.read_text().count('"kind": "answer"') if rows.exists() else 0


def test_eval_is_interrupted_and_goes_on(lynx: Server, settings: Settings, tmp_path: Path) -> None:
    assert settings(slo_itl_ms=30, demand=0.8)
    before = lynx.lynx()
    assert before is not None
    run = subprocess.Popen(evaluation(lynx, tmp_path), stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 120
    while answers(tmp_path) < 6 and run.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    state = lynx.lynx()
    assert state is not None
    assert state["settings"] == before["settings"]
    kept = answers(tmp_path)
    assert 6 <= kept < 80

    ran = subprocess.run(evaluation(lynx, tmp_path), capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    state = lynx.lynx()
    assert state is not None
    assert state["settings"] == before["settings"]
    report = json.loads((tmp_path / "report.json").read_text())
    legs = {(leg["point"], leg["concurrency"]): leg for leg in report["legs"]}
    full, cut = legs["budget full", 8], legs["budget 25%", 8]
    shared, demanded = legs["share 50%", 8], legs["demand 0.5", 8]
    assert full["answers"] == cut["answers"] == 16
    assert answers(tmp_path) == 80
    for other in (shared, demanded):
        assert other["active_experts"] < full["active_experts"]
        assert 5 * full["kl"] < other["kl"]
        assert other["retained_mass"] < 1.0
    assert cut["active_experts"] < full["active_experts"]
    assert 5 * full["kl"] < cut["kl"]  # what is left at full is float32's rounding
    assert full["retained_mass"] == 1.0
    assert full["compared"] == cut["compared"] == 4
    assert (tmp_path / "frontier.png").stat().st_size > 1000

    ran = subprocess.run(
        evaluation(lynx, tmp_path, "--max-tokens", "99"), capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "max_tokens was 160, is 99" in ran.stderr


def test_a_calibration_sets_the_floor_and_refuses_another_model(
    forks: ForkServer, model: Path, tmp_path: Path
) -> None:
    text, rows = tmp_path / "text.jsonl", traffic("validation", 16, seed=5)
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "calibration.json"
    run = [LYNX, "calibrate", "--model-path", str(model), "--device", "cpu"]
    run += ["--text", str(text), "--tokens", "1024", "--out", str(file)]
    ran = subprocess.run(run, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-2000:]
    made = json.loads(file.read_text())
    assert len(made["layer_kl"]) == 8
    kl = {row["share"]: row["kl"] for row in made["shares"]}
    assert 0 < kl[0.9] < kl[0.35]
    assert max(made["layer_kl"]) < kl[0.35]
    assert sum(made["layer_offsets"]) == pytest.approx(0.0, abs=1e-3)
    assert [len(layer) for layer in made["contributions"]] == [64] * 8
    for layer in made["contributions"]:
        assert 0.0 < min(layer) < 0.9 < max(layer) == 1.0

    options = ["--moe-backend=lynx", f"--lynx-calibration={file}"]
    with ForkedServer(forks, model, tmp_path / "log", options) as server:
        state = server.lynx()
        assert state is not None
        assert state["settings"]["min_retained_mass"] == made["min_retained_mass"]
        server.post("/generate", {"text": "Ann", "sampling_params": {"max_new_tokens": 2}})
    assert "lynx is calibrated by" in (tmp_path / "log").read_text()

    file.write_text(json.dumps({**made, "model_sha256": "0" * 64}))
    options = ["--moe-backend=lynx", f"--lynx-calibration={file}"]
    assert "is of another model" in refusal(forks, model, tmp_path / "foreign", options)
