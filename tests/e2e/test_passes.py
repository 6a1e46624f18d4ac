"""SGLang's forward-pass metrics of a CPU server, written down and read back."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plant import passes
from loadtests.server import Server

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
RECORDER = (sys.executable, "-m", "benchmarks.controller.record_passes")


def test_a_plain_servers_passes_are_recorded(
    plain: Server, prompts: list[str], generate: Callable[..., list[Any]], tmp_path: Path
) -> None:
    path, endpoint = tmp_path / "passes.jsonl", f"ipc://{plain.log.with_name('passes')}.0"
    with subprocess.Popen([*RECORDER, endpoint, str(path)], cwd=ROOT) as recorder:
        try:
            found: list[passes.DecodePass] = []
            for _ in range(40):  # a subscriber misses what was sent before it came
                generate(plain, prompts[:4], ignore_eos=True, max_new_tokens=20)
                found = list(passes.read(path)) if path.exists() else []
                if len(found) >= 10:
                    break
        finally:
            recorder.send_signal(signal.SIGTERM)
    assert recorder.returncode == 0
    assert len(found) >= 10
    assert {each.rows for each in found} <= {1, 2, 3, 4}
    assert all(0.5 < each.step_ms < 2000.0 for each in found)
