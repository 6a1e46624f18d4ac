"""Every program of the checkout starts with ``python -m``, says how it is used, and is listed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IS_PROGRAM = '__name__ == "__main__"'
PROGRAMS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("benchmarks", "loadtests", "models")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if IS_PROGRAM in path.read_text() and path.name != "sandbox.py"  # a child process
]
# These stop without a GPU; their dry runs are tested in tests/benchmarks/gpu.
ON_GPU = tuple(f"benchmarks.gpu.{name}" for name in ("bench", "check", "compilation", "tune"))
BY_MAKE = {
    "benchmarks.decode_step": "make bench",
    "benchmarks.shadow_step": "make bench-shadow",
    "benchmarks.gpu.compilation": "make gpu-e2e",
    "benchmarks.gpu.model": "make gpu-resources",
    **{f"benchmarks.gpu.{name}": f"make gpu-{name}" for name in ("check", "bench", "e2e", "tune")},
    "benchmarks.gpu.resources": "make gpu-resources",
    "benchmarks.controller.record_passes": "record_passes",
}


@pytest.mark.parametrize("program", [each for each in PROGRAMS if each not in ON_GPU])
def test_it_says_how_it_is_used(
    program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    monkeypatch.delitem(sys.modules, program, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(program, run_name="__main__")
    assert not ended.value.code
    assert "usage:" in capsys.readouterr().out


def test_the_readme_lists_every_benchmark() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for program in PROGRAMS:
        if program.startswith("benchmarks."):
            assert BY_MAKE.get(program, f"python -m {program}") in text
