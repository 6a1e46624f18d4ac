"""The command line of the program that runs, for the results that it writes."""

from __future__ import annotations

import shlex
import sys


def command() -> str:
    """As it is typed in the root of the checkout: ``python -m benchmarks.NAME OPTIONS``."""
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name] if spec is not None else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])
