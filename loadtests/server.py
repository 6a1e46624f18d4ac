"""One SGLang server, started and stopped by process id."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

CPU_OPTIONS = (
    "--device=cpu",
    "--dtype=float32",
    "--mem-fraction-static=0.1",
    "--max-total-tokens=20000",
    "--max-running-requests=64",
    "--enable-metrics",
)
# Both launchers take the same options.
LAUNCH_SERVER = (sys.executable, "-m", "sglang.launch_server")
SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")
# On two busy cores a start took more than 300 s; the tests end at 600 s.
READY_TIMEOUT_S = 540.0
STOP_TIMEOUT_S = 20.0


class ServerError(RuntimeError):
    """The server did not start or refused a request; the message says why."""


def stop_with_me() -> None:
    """Let SIGTERM unwind this program's ``with`` blocks, so that no server outlives it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def free_port() -> int:
    """A port of 127.0.0.1 below those that outgoing connections take while the server starts."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def command(
    model: Path, port: int, options: Sequence[str] = (), base: Sequence[str] = CPU_OPTIONS
) -> list[str]:
    """A server's command line after its launcher; ``base`` says where it runs."""
    model_path = ("--model-path", str(model.resolve()))
    where = ("--host=127.0.0.1", f"--port={port}")
    return [*model_path, *base, *where, *options]


class Server:
    """A server in a process group of its own; leaving the ``with`` block ends the group."""

    def __init__(
        self,
        model: Path,
        log: Path,
        options: Sequence[str] = (),
        launcher: Sequence[str] = LAUNCH_SERVER,
        base: Sequence[str] = CPU_OPTIONS,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            # A session of its own: one id stops the launcher and all of SGLang's processes.
            self._process = subprocess.Popen(
                [*launcher, *command(model, self.port, options, base)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=log.parent,
                start_new_session=True,
            )

    def __enter__(self) -> Server:
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> float:
        """Seconds until the server answered ``/health``.

        Raises:
            ServerError: it ended, or took longer than ``timeout_s``; with the log's end.
        """
        began_s = time.monotonic()
        while time.monotonic() - began_s < timeout_s:
            if self._process.poll() is not None:
                raise ServerError(
                    f"the server ended with {self._process.returncode}\n{self.tail()}"
                )
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return time.monotonic() - began_s
            time.sleep(0.5)
        raise ServerError(f"the server was not ready after {timeout_s:g} s\n{self.tail()}")

    def stop(self, grace_s: float = STOP_TIMEOUT_S) -> None:
        """End the whole process group, by force after ``grace_s``; returns when it is gone."""
        for request in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, request)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)

    def tail(self, lines: int = 20) -> str:
        ends = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(line[:300] for line in ends)

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        return self._ask(request)

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            reply = error.read(500).decode(errors="replace")
            raise ServerError(f"{request.full_url}: HTTP {error.code}: {reply}") from None
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    def lynx(self) -> dict[str, Any] | None:
        """Lynx's part of ``/server_info``; None on a server without it."""
        part: dict[str, Any] | None = self.get("/server_info")["internal_states"][0].get("lynx")
        return part
