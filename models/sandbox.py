"""Runs untrusted little functions against unit tests in a persistent child process.

The child has few builtins, no imports, no dunder names and a memory limit; the parent gives each
run a time limit and replaces a child that overruns or dies. This keeps a model's mistakes from
hurting; it is no defence against an attacker.
"""

from __future__ import annotations

import ast
import atexit
import json
import select
import subprocess
import sys
import threading

TIME_LIMIT_S = 2.0
MEMORY_LIMIT_BYTES = 512 << 20
SAFE_BUILTINS = (
    "abs", "all", "any", "bool", "dict", "enumerate", "filter", "float", "int", "len", "list",
    "map", "max", "min", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple",
    "zip",
)  # fmt: skip


def _is_forbidden(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Attribute):
        return node.attr.startswith("_") or node.attr == "format"
    return isinstance(node, ast.Name) and node.id.startswith("__")


def _run(source: str, tests: str) -> bool:
    import builtins

    try:
        tree = ast.parse(source)
        if any(_is_forbidden(node) for node in ast.walk(tree)):
            return False
        namespace: dict[str, object] = {
            "__builtins__": {name: getattr(builtins, name) for name in SAFE_BUILTINS}
        }
        exec(compile(tree, "<completion>", "exec"), namespace)
        exec(tests, namespace)
    except BaseException:  # whatever the function does wrong, it is wrong
        return False
    return True


def serve() -> None:
    """The child's loop: says "ready", then one JSON verdict for each JSON request, a line each."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        source, tests = json.loads(line)
        print(json.dumps(_run(source, tests)), flush=True)


class Sandbox:
    """Owns one child; a lock lets several threads share it."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        if not time_limit_s > 0:
            raise ValueError(f"time_limit_s must be above 0, got {time_limit_s!r}")
        self.time_limit_s = time_limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def passes(self, source: str, tests: str) -> bool:
        """Whether `source` runs and satisfies `tests` within the time limit."""
        with self._lock:
            child = self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps([source, tests]).encode() + b"\n")
                child.stdin.flush()
            except BrokenPipeError:
                self._stop()
                return False
            ready, _, _ = select.select([child.stdout], [], [], self.time_limit_s)
            verdict = child.stdout.readline() if ready else b""
            if not verdict:
                self._stop()
            return verdict.strip() == b"true"

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._stop()
            self._child = subprocess.Popen(
                [sys.executable, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self._child.stdout is not None
            self._child.stdout.readline()  # its start is no part of a function's time
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        continue
            self._child = None


_SANDBOX = Sandbox()
atexit.register(_SANDBOX.close)
passes = _SANDBOX.passes

if __name__ == "__main__":
    serve()
