"""Kernels and servers on a GPU: right, fast, and as predicted?

A host needs torch and Triton (``e2e`` an installed SGLang too) and this checkout; nothing is
installed. From its root::

    make gpu-check
    PYTHONPATH=kernels:controller python3 -m benchmarks.gpu.check    # the same, without make

With ``--dry-run``, the same code runs on a CPU under Triton's interpreter.
"""

import os
import sys

IS_DRY_RUN = "--dry-run" in sys.argv
if IS_DRY_RUN:
    os.environ["TRITON_INTERPRET"] = "1"  # before any module here imports Triton, which reads it
