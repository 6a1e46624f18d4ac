"""A server that was asked for Lynx and did not get it stops, whichever hook fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from lynx_sglang import sglang_names

PROGRAM = Path(__file__).with_name("failing_hooks.py")
LAUNCHER = {sglang_names.ADD_CLI_ARGS.hook_path, sglang_names.FROM_CLI_ARGS.hook_path}
FRONTEND = {sglang_names.START.hook_path}
SERVER = {
    sglang_names.TOPK_LAYER.hook_path,
    sglang_names.POST_PROCESS_TOPK.hook_path,
    sglang_names.RECEIVE.hook_path,
    sglang_names.RUN_BATCH.hook_path,
    sglang_names.FORWARD.hook_path,
    sglang_names.SET_STATE.hook_path,
    sglang_names.STREAMER_CLASS.hook_path,
    sglang_names.GET_STATE.hook_path,
    sglang_names.UPDATE_HANDLERS.hook_path,
}
ON_CPU = {sglang_names.CREATE_RUNNER.hook_path}
ON_GPU = {
    sglang_names.FUSED_MOE.hook_path,
    sglang_names.BIND_BACKEND.hook_path,
    sglang_names.CAPTURE.hook_path,
    sglang_names.PROCESS_RESULT.hook_path,
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """By process and hooked function: exit status and last words."""
    run = subprocess.run(
        [sys.executable, PROGRAM], capture_output=True, text=True, timeout=900, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    seen: dict[str, dict[str, Any]] = defaultdict(dict)
    for line in run.stdout.splitlines():
        if line.startswith("{"):
            outcome = json.loads(line)
            seen[outcome["process"]][outcome["target"]] = outcome
    return seen


@pytest.mark.parametrize(("device", "more"), [("cpu", ON_CPU), ("cuda", ON_GPU)])
def test_each_hook_that_fails_stops_its_process_by_name(
    outcomes: dict[str, dict[str, Any]], device: str, more: set[str]
) -> None:
    seen = dict(outcomes[device])
    assert seen.pop("")["status"] == 0
    assert set(seen) >= LAUNCHER | FRONTEND | SERVER | more
    for target, outcome in seen.items():
        assert outcome["status"] == 1, outcome
        assert f"lynx: {target} without lynx's hook" in outcome["said"]


def test_a_launcher_without_its_hooks_does_not_know_the_flag(
    outcomes: dict[str, dict[str, Any]],
) -> None:
    seen = outcomes["launcher"]
    assert seen[""]["status"] == 0
    for target in LAUNCHER:
        assert seen[target]["status"] == 1, seen[target]
        assert "unrecognized arguments: --moe-backend lynx" in seen[target]["said"]
    for target in FRONTEND:
        assert seen[target]["status"] == 1, seen[target]
        assert f"{target} without lynx's hook" in seen[target]["said"]
