"""The ways in: examples, ``Engine``, and launches that must stop with a reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.server import SERVE, Server, command
from tests.e2e.forkserver import ForkServer, refusal

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("program", "shown"),
    [("frontend.py", "selected:"), ("openai_client.py", "'tier': 'exact'")],
)
def test_examples_run(
    lynx: Server, settings: Callable[..., bool], program: str, shown: str
) -> None:
    assert settings(demand=0.6)
    ran = run([sys.executable, str(ROOT / "examples" / program), "--port", str(lynx.port)])
    assert ran.returncode == 0, ran.stderr
    assert shown in ran.stdout


def test_engine_takes_the_same_options(model: Path) -> None:
    ran = run([sys.executable, str(Path(__file__).with_name("engine_program.py")), str(model)])
    assert ran.returncode == 0, ran.stderr[-2000:]
    state, reports, left = json.loads(ran.stdout.splitlines()[-1])
    assert state["settings"]["budget"] == "25%"
    assert state["decision"]["budget"] == [16] * 8
    assert 0 < state["active_experts_sum"] / state["decode_steps"] <= 16
    assert all(report["degraded"] for report in reports)
    assert left == []


def test_a_wrong_variable_stops_sglang_serve(model: Path) -> None:
    wrong = {"LYNX_CFG": "/etc/lynx.cfg", "LYNX_BUDGIT": "full", "LYNX_BUDGET": "most"}
    ran = run([*SERVE, *command(model, 1, ["--moe-backend=lynx"])], **wrong)
    assert ran.returncode != 0
    for part in ("LYNX_BUDGIT is ignored", "nearest is LYNX_BUDGET", "LYNX_BUDGET: expected"):
        assert part in ran.stderr


def test_a_wrong_setting_stops_the_launch(forks: ForkServer, model: Path, tmp_path: Path) -> None:
    said = refusal(forks, model, tmp_path / "log", ["--moe-backend=lynx", "--lynx-policy=linx"])
    assert [part for part in ("--lynx-policy", "one of", "oea", "'linx'") if part not in said] == []


def test_a_dense_model_stops_the_launch(forks: ForkServer, model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tmp_path)
    config = json.loads((model / "config.json").read_text())
    dense = {key: value for key, value in config.items() if "expert" not in key}
    dense |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    (tmp_path / "config.json").write_text(json.dumps(dense))
    said = refusal(forks, tmp_path, tmp_path / "log", ["--moe-backend=lynx"])
    assert "dense model" in said
    assert "without --moe-backend lynx" in said
