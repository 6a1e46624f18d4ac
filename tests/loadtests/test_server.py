"""A server ends with the program that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
from loadtests.server import Server, stop_with_me

stop_with_me()
sleeper = (sys.executable, "-c", "import time; time.sleep(60)")
server = Server(Path("model"), Path(sys.argv[1]), launcher=sleeper)
print(server._process.pid, flush=True)
with server:
    pass
"""


def test_a_terminated_program_leaves_no_server(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log")],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    server = int(program.stdout.readline())
    time.sleep(0.2)  # into the with block
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 128 + signal.SIGTERM
    program.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
