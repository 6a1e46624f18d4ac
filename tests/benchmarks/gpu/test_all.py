"""benchmarks/gpu/all.sh with programs that stand for the real ones, and its cheap stages dry.

benchmarks/README.md has the command that runs all of it dry.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks/gpu/all.sh"
TEXT = SCRIPT.read_text()
MAX_COMMAND_S = 600
MAX_COPY_KIB = 38 << 10

# An interpreter whose programs say their names and options; bench fails, e2e starts a server.
STAND_IN = """#!/bin/sh
case $2 in
benchmarks.gpu.bench) echo '{"us": 1}' >>"$6"; echo "bad rows"; exit 3 ;;
benchmarks.gpu.e2e)
  mkdir -p build/gpu/e2e
  echo "a server's log" >build/gpu/e2e/lynx.log
  [ ! -e hang ] || sleep 60 ;;
esac
echo "$*"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script alone and an interpreter that runs nothing real."""
    folder = tmp_path / "checkout"
    (folder / "benchmarks/gpu").mkdir(parents=True)
    (folder / "benchmarks/gpu/all.sh").write_text(TEXT)
    (folder / "python").write_text(STAND_IN)
    (folder / "python").chmod(0o755)
    return folder


def command(checkout: Path, *arguments: str) -> list[str]:
    return ["sh", str(checkout / "benchmarks/gpu/all.sh"), str(checkout / "out"), *arguments]


def environment(checkout: Path, **variables: str) -> dict[str, str]:
    return {**os.environ, "GPU_PYTHON": str(checkout / "python"), **variables}


def run(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(checkout, *arguments),
        env=environment(checkout, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def stages_in(printed: str) -> dict[str, str]:
    """Lines of the summary by their stages."""
    lines = [line for line in printed.splitlines() if not line.startswith(("    ", "results"))]
    return {line.split()[0]: line for line in lines}


def number(name: str) -> int:
    found = re.search(rf"^{name}=(\d+|\$\{{{name}:-(\d+)\}})", TEXT, re.MULTILINE)
    assert found is not None, name
    return int(found[2] or found[1])


def seconds_of(stage: str) -> int:
    case = rf"^    {stage}\) +(?:stage|program) (\d+)\+? "
    function = rf"^{stage}\(\) {{.*?^ +(?:stage|program) (\d+)\+? "
    found = re.search(case, TEXT, re.MULTILINE) or re.search(function, TEXT, re.M | re.S)
    assert found is not None, stage
    return int(found[1])


def test_a_shell_can_read_it() -> None:
    assert subprocess.run(["sh", "-n", str(SCRIPT)]).returncode == 0


@pytest.mark.parametrize("name", ["FIRST", "SECOND"])
def test_the_stages_of_a_pass_fit_into_one_command(name: str) -> None:
    found = re.search(rf'^{name}="(.*)"', TEXT, re.MULTILINE)
    assert found is not None
    stages = found[1].split()
    needed_s = sum(seconds_of(stage) + number("KILL_S") for stage in stages) + number("PACK_S")
    assert needed_s <= number("LIMIT_S") < MAX_COMMAND_S


def test_the_copy_is_small_and_has_the_programs(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("the copy is made by git, of a commit")
    folder = tmp_path / "copy"
    done = subprocess.run(
        ["sh", str(SCRIPT), "--copy", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-2]) < MAX_COPY_KIB
    assert sum(path.stat().st_size for path in folder.rglob("*")) < MAX_COPY_KIB << 10
    assert not list(folder.rglob("*.safetensors"))
    assert (folder / "benchmarks/gpu/e2e.py").is_file()


def test_a_stage_that_fails_is_named_and_the_next_ones_run(checkout: Path) -> None:
    done = run(checkout, "--dry-run")
    assert done.returncode == 1
    stages = stages_in(done.stdout)
    assert list(stages) == ["versions", "bundle", "check", "bench", "e2e"]
    assert "BUNDLE is not set" in stages["bundle"]
    assert "exit 3" in stages["bench"]
    assert "bad rows" in stages["bench"]
    assert all("exit 0" in stages[name] for name in ("versions", "check", "e2e"))
    out = checkout / "out"
    assert (out / "summary.txt").read_text().splitlines() == list(stages.values())
    assert "--quick --limit-min 3.80 --dry-run" in (out / "output.txt").read_text()
    assert (out / "bench.jsonl").is_file()
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert all(path.parent == out for path in files)
    with tarfile.open(out / "logs.tar.gz") as logs:
        assert sorted(logs.getnames()) == ["lynx.log", "output.txt", "summary.txt"]


def test_the_second_pass_begins_with_what_failed_in_the_first(checkout: Path) -> None:
    run(checkout, "--dry-run")
    stages = stages_in(run(checkout, "second", "--dry-run").stdout)
    assert list(stages) == ["bench", "tune", "check-full", "bench-shapes", "bench-fp8"]


def test_no_stage_outlives_the_limit_of_the_command(checkout: Path) -> None:
    (checkout / "hang").touch()
    script = checkout / "benchmarks/gpu/all.sh"
    script.write_text(re.sub(r"^(STOP_S|PACK_S|KILL_S)=\d+", r"\1=1", TEXT, flags=re.MULTILINE))
    began_s, limit_s = time.monotonic(), 5
    stages = stages_in(run(checkout, "e2e", "check", LIMIT_S=str(limit_s)).stdout)
    assert time.monotonic() - began_s < limit_s + 1  # of an interpreter's start, too
    assert "exit 124  time is up" in stages["e2e"]
    assert "no time left" in stages["check"]


def test_a_stopped_script_keeps_the_servers_logs(checkout: Path) -> None:
    (checkout / "hang").touch()
    process = subprocess.Popen(
        command(checkout, "check", "e2e"),
        env=environment(checkout),
        stdout=subprocess.PIPE,
        text=True,
    )
    log = checkout / "build/gpu/e2e/lynx.log"
    end_s = time.monotonic() + 30
    while not log.exists() and time.monotonic() < end_s:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by a signal" in stages_in(printed)["all"]
    assert "exit 0" in stages_in(printed)["check"]
    with tarfile.open(checkout / "out/logs.tar.gz") as logs:
        assert "lynx.log" in logs.getnames()


@pytest.mark.parametrize("smoke", ["OK rmsnorm", "FAIL rmsnorm"])
def test_a_bundle_is_unpacked_tried_and_used(checkout: Path, tmp_path: Path, smoke: str) -> None:
    source = tmp_path / "source"
    (source / "site/sglang").mkdir(parents=True)
    (source / "site/sglang/__init__.py").write_text("__version__ = '9'\n")
    (source / "env.sh").write_text("export PYTHONPATH=$B/site:$PYTHONPATH\n")
    (tmp_path / "gpu_smoke.py").write_text(f"import sglang\nprint({smoke!r}, sglang.__version__)\n")
    with tarfile.open(tmp_path / "bundle.tar.xz", "w:xz") as bundle:
        for path in sorted(source.iterdir()):
            bundle.add(path, path.name)
    variables = {"BUNDLE": str(tmp_path / "bundle.tar.xz"), "GPU_PYTHON": sys.executable}
    line = stages_in(run(checkout, "bundle", **variables).stdout)["bundle"]
    assert f"exit {int(smoke.startswith('FAIL'))}" in line
    assert f"{smoke} 9" in line


def test_the_cheap_stages_run_dry(tmp_path: Path) -> None:
    """The real check, interpreted, by the interpreter of this test."""
    done = subprocess.run(
        ["sh", str(SCRIPT), str(tmp_path), "versions", "check", "--dry-run"],
        env={**os.environ, "GPU_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "25 of 25 good" in stages_in(done.stdout)["check"]
    printed = (tmp_path / "output.txt").read_text()
    assert "torch" in printed
    assert "FAIL" not in printed
