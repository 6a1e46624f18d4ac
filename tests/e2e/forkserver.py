"""Servers in seconds: one process imports SGLang once, and each server is a fork of it.

Run as a program, it reads a line of JSON for each server to start, ``{"argv": [...], "env": {...},
"log": PATH, "plugin": MODULE or null}``, and answers with its process id. All processes of such a
server are forks too, so plugins are loaded once, here, and what they do in a scheduler is done
again in each; there, ``register`` of the job's own plugin is called, too. Tests of how a server
starts (launchers, plugin loading, ``Engine``) need a real start; tests of how it serves do not.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from loadtests.server import CPU_OPTIONS, Server, command, free_port

IMPORT_TIMEOUT_S = 300.0
PLUGIN = "FORK_SERVER_PLUGIN"
LIFETIME_S = 2700  # of a server whose test was killed: longer than all tests take


class ForkServer:
    """The process that imports; leaving the ``with`` block ends it."""

    def __enter__(self) -> ForkServer:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if ready != "ready\n":
            raise RuntimeError(f"the fork server did not start, it said {ready!r}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, trace)  # at the end of its input it ends

    def start(
        self, argv: Sequence[str], log: Path, plugin: str | None = None, **environment: str
    ) -> Forked:
        """Start ``sglang.launch_server`` with these arguments; its output goes to ``log``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        log.parent.mkdir(parents=True, exist_ok=True)
        job = {"argv": list(argv), "env": environment, "log": str(log), "plugin": plugin}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()), code_of(log))


@dataclass(frozen=True, slots=True)
class Forked:
    """A server's launcher, with the part of ``subprocess.Popen`` that ``Server`` uses."""

    pid: int
    code: Path  # where it leaves its exit status

    def poll(self) -> int | None:
        """Exit status, -1 where it left none; None while it runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return int(self.code.read_text()) if self.code.exists() else -1
        return None

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout_s: float) -> int:
        """Raises: subprocess.TimeoutExpired."""
        end_s = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > end_s:
                raise subprocess.TimeoutExpired("forked server", timeout_s)
            time.sleep(0.05)
        return code


class ForkedServer(Server):
    """A ``Server`` from a fork server."""

    def __init__(
        self,
        forks: ForkServer,
        model: Path,
        log: Path,
        options: Sequence[str] = (),
        base: Sequence[str] = CPU_OPTIONS,
        plugin: str | None = None,
        **environment: str,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        argv = command(model, self.port, options, base)
        self._process: Any = forks.start(argv, log, plugin, **environment)


def refusal(
    forks: ForkServer, model: Path, log: Path, options: Sequence[str], timeout_s: float = 120.0
) -> str:
    """The output of a server that must end with an error before it serves."""
    forked = forks.start(command(model, free_port(), options), log)
    try:
        assert forked.wait(timeout_s) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(forked.pid, signal.SIGKILL)
    return log.read_text()


def code_of(log: Path) -> Path:
    return log.with_name(log.name + ".code")


def import_sglang() -> None:
    """Import what a server needs, make every new process a fork, and load the plugins."""
    import multiprocessing

    multiprocessing.set_start_method("fork", force=True)
    context = multiprocessing.get_context("fork")
    multiprocessing.set_start_method = lambda *_args, **_kwargs: None
    multiprocessing.get_context = lambda _method=None: context  # type: ignore[assignment,misc,return-value]

    import sglang.launch_server
    import sglang.srt.entrypoints.http_server
    import sglang.srt.model_executor.model_runner
    import sglang.srt.models.registry  # noqa: F401
    from sglang.srt.managers import data_parallel_controller, scheduler
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    from lynx_sglang.integration import flags, plugin

    load_plugins()

    def load_in_scheduler() -> None:
        if (settings := flags.published()) is not None:
            plugin._register_server(settings)
        if name := os.environ.get(PLUGIN):
            importlib.import_module(name).register()
        HookRegistry.apply_hooks()

    scheduler.load_plugins = load_in_scheduler
    data_parallel_controller.load_plugins = HookRegistry.apply_hooks  # its schedulers are its forks


def serve(job: dict[str, Any]) -> None:
    """In the fork: become the server."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.alarm(LIFETIME_S)
    os.setsid()  # one id stops the launcher and all of its processes
    output = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, source in enumerate((nothing, output, output)):
        os.dup2(source, number)
    os.environ.update(job["env"])
    os.environ[PLUGIN] = job["plugin"] or ""
    os.chdir(Path(job["log"]).parent)
    sys.argv = ["sglang.launch_server", *job["argv"]]

    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args

    run_server(prepare_server_args(sys.argv[1:]))


def child(job: dict[str, Any]) -> None:
    """Run ``serve`` and leave its exit status, without the parent's cleaning up."""
    code = 0
    try:
        serve(job)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        code_of(Path(job["log"])).write_text(str(code))
        os._exit(code)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is not an answer
    import_sglang()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # servers leave no zombies
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            answers.close()
            child(json.loads(line))
        print(pid, file=answers, flush=True)


if __name__ == "__main__":
    main()
