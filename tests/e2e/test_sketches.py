"""Sketches on the bundled model: fitted by ``calibrate``, resumed, served, refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadtests.server import Server
from models.traffic import traffic
from tests.e2e.forkserver import ForkedServer, ForkServer, refusal

pytestmark = pytest.mark.e2e

LYNX = str(Path(sys.executable).with_name("lynx-sglang"))
Generate = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def calibrated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration with sketches of 5 % of the bytes; interrupted after the fit, and resumed."""
    folder = tmp_path_factory.mktemp("sketches")
    text = folder / "text.jsonl"
    rows = traffic("train", 96, seed=5)
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "tiny.json"
    run = [LYNX, "calibrate", "--model-path", str(model), "--device", "cpu", "--sketch-bytes", "5%"]
    run += ["--text", str(text), "--tokens", "8192", "--out", str(file)]
    first = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    layers = folder / "tiny.json.sketches"
    deadline_s = time.monotonic() + 200
    while len(list(layers.glob("*.safetensors"))) < 8 and time.monotonic() < deadline_s:
        assert first.poll() is None, first.communicate()[0][-2000:]
        time.sleep(0.1)
    first.kill()
    first.communicate(timeout=60)
    fitted = {each.name: each.read_bytes() for each in layers.iterdir() if each.suffix != ".new"}
    ran = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(fitted) == 8
    assert "recommended: serve with these sketches" in ran.stdout
    assert not layers.exists()
    return file


def served(
    forks: ForkServer, model: Path, file: Path, log: Path, generate: Generate, prompts: list[str]
) -> tuple[dict[str, Any], list[Any]]:
    """The server's state after 16 requests, one of them exact, at 30 % of the uncapped experts."""
    options = ["--moe-backend=lynx", f"--lynx-calibration={file}", "--lynx-share=0.3"]
    options += ["--lynx-shadow-share=1", "--sleep-on-idle", "--enable-tokenizer-batch-encode"]
    tiers = ["exact", *["flexible"] * 15]
    with ForkedServer(forks, model, log, options) as server:
        for _ in range(2):  # the first requests teach the uncapped number
            answers = generate(server, prompts[:16], tiers, ignore_eos=True, max_new_tokens=48)
            server.post("/flush_cache", {})
        state = server.lynx()
    assert state is not None
    return state, answers


def test_sketches_stand_in_for_lost_experts(
    forks: ForkServer,
    model: Path,
    plain: Server,
    calibrated: Path,
    tmp_path: Path,
    generate: Generate,
    prompts: list[str],
) -> None:
    made = json.loads(calibrated.read_text())
    assert made["min_retained_mass"] < 0.95
    without = tmp_path / "without.json"
    without.write_text(json.dumps({**made, "sketches": None}))
    with_sketches, answers = served(
        forks, model, calibrated, tmp_path / "with.log", generate, prompts
    )
    with_refill, _ = served(forks, model, without, tmp_path / "refill.log", generate, prompts)
    log = (tmp_path / "with.log").read_text()
    assert "with what its sketches stand in for" in log
    steps = with_sketches["decode_steps"]
    # As many experts, and less than half of the loss.
    assert with_sketches["active_experts_sum"] == pytest.approx(
        with_refill["active_experts_sum"], rel=0.1
    )
    assert with_sketches["shadow"]["kl_mean"] < 0.5 * with_refill["shadow"]["kl_mean"]
    retained, covered = (
        with_sketches[f"{name}_mass_sum"] / steps for name in ("retained", "covered")
    )
    assert retained < covered < 1.0
    assert with_refill["covered_mass_sum"] == with_refill["retained_mass_sum"]
    # The exact request is as without Lynx.
    (alone,) = generate(plain, prompts[:1], ignore_eos=True, max_new_tokens=48)
    assert answers[0].tokens == alone.tokens
    assert not answers[0].report["degraded"]
    assert answers[1].report["retained_mass"] < answers[1].report["covered_mass"] < 1.0


def test_sketches_of_other_weights_are_refused(
    forks: ForkServer, model: Path, calibrated: Path, tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for each in model.iterdir():
        (tuned / each.name).write_bytes(each.read_bytes())
    weights = bytearray((tuned / "model.safetensors").read_bytes())
    weights[len(weights) // 2 :: 8] = bytes(len(weights[len(weights) // 2 :: 8]))
    (tuned / "model.safetensors").write_bytes(weights)
    options = ["--moe-backend=lynx", f"--lynx-calibration={calibrated}"]
    assert "its sketches are of other weights" in refusal(
        forks, tuned, tmp_path / "tuned.log", options
    )
    damaged = tmp_path / "tiny.json"
    damaged.write_text(calibrated.read_text())
    factors = calibrated.with_suffix(".sketches.safetensors").read_bytes()
    (tmp_path / "tiny.sketches.safetensors").write_bytes(factors[:-1] + b"\\0")
    options = ["--moe-backend=lynx", f"--lynx-calibration={damaged}"]
    assert "are not those that it was measured with" in refusal(
        forks, model, tmp_path / "damaged.log", options
    )
