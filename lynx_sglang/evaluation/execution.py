"""Runs a model's code against unit tests in a child process.

The child has a time, a processor and a memory limit, an empty environment and a folder of its own.
This keeps a model's mistakes from hurting; it is no defence against an attacker: measure a model
that you do not trust inside a container.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile

TIME_LIMIT_S = 10.0
MEMORY_LIMIT_BYTES = 1 << 30

# The nonce is printed last: code that ends the process early has not passed.
CHILD = f"""
import json, resource, sys
for kind, limit in (("AS", {MEMORY_LIMIT_BYTES}), ("CPU", {int(TIME_LIMIT_S)})):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
program, nonce = json.load(sys.stdin)
exec(compile(program, "<program>", "exec"), {{"__name__": "program"}})
print(nonce)
"""


def passes(program: str, time_limit_s: float = TIME_LIMIT_S) -> bool:
    """Whether ``program`` runs to its end within the limits."""
    nonce = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        try:
            ran = subprocess.run(
                [sys.executable, "-I", "-c", CHILD],
                input=json.dumps([program, nonce]),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=time_limit_s,
                cwd=folder,
                env={},
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return ran.returncode == 0 and ran.stdout.endswith(f"{nonce}\n")
