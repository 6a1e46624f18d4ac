"""The package stands alone: torch, NumPy and Triton below it, no SGLang and no sibling."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import lynx_kernels

PACKAGE = Path(lynx_kernels.__file__).parent
ALLOWED = {"__future__", "lynx_kernels", "numpy", "torch"} | set(sys.stdlib_module_names)


def imported_roots(path: Path) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots.update(name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            roots.add((node.module or "").split(".")[0])
    return roots


def test_every_module_imports_only_what_it_may():
    for path in PACKAGE.rglob("*.py"):
        is_compiled = "triton" in path.stem or "cpu" in path.stem
        compiler = {"triton", "numba", "llvmlite"} if is_compiled else set()
        assert imported_roots(path) <= ALLOWED | compiler, path.name


def test_importing_loads_no_sglang():
    check = (
        "import sys, lynx_kernels; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('sglang', 'lynx_sglang', 'lynx_controller')])"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names_exist_once():
    names = lynx_kernels.__all__
    assert len(names) == len(set(names))
    assert all(hasattr(lynx_kernels, name) for name in names)
