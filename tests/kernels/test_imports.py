"""The package's exports, in any order of import, and its dependencies."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import lynx_kernels

PACKAGE = Path(lynx_kernels.__file__).parent
ALLOWED = {"__future__", "lynx_kernels", "numpy", "torch"} | set(sys.stdlib_module_names)
EXPORTS = {
    "lynx_kernels": (
        "POLICIES, CpuExperts, Policy, RowClass, Selection, fused_moe, fused_moe_reference, "
        "policies_for_triton, select, select_reference, warm_up"
    ),
    "lynx_kernels.fused_moe": (
        "ACTIVATIONS, SCALE_BLOCK, SWIGLU_ALPHA, SWIGLU_LIMIT, CpuExperts, Workspace, fused_moe, "
        "fused_moe_reference, fused_moe_triton"
    ),
    "lynx_kernels.schedule": "Schedule, build_schedule_reference, local_ids",
    "lynx_kernels.select": (
        "MAX_FUSED_ROWS, POLICIES, SCORINGS, LayerBuffers, Policy, RowClass, SelectBuffers, "
        "Selection, build_schedule, find_policy, policies_for_triton, select, select_reference, "
        "select_triton, warm_up"
    ),
    "lynx_kernels.sketch": (
        "LayerSketches, Sketch, add_sketches, add_sketches_reference, covered_mass, lost_slots, "
        "warm_up"
    ),
}
ROOMS = ("sketch", "schedule", "select", "fused_moe")  # each stands on those before it
# A first import by each of these, then the others: `select` is a function and a room.
FIRST = (
    "from lynx_kernels.select.policies import Policy",
    "from lynx_kernels.select.triton_form import select_triton",
    "from lynx_kernels.select import select_triton, SelectBuffers",
    "from lynx_kernels.fused_moe.tuning import Tiles",
    "from lynx_kernels.fused_moe import fused_moe_triton, Workspace",
    "from lynx_kernels.schedule import Schedule",
    "from lynx_kernels import select, select_reference, Selection, fused_moe, RowClass, POLICIES",
    "import lynx_kernels.select.triton_kernels",
)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def imports_of(path: Path) -> list[str]:
    """Modules that a file imports, wherever in it, but for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.extend(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names.append(node.module or "")
    return names


def test_every_module_imports_only_what_it_may() -> None:
    for path in PACKAGE.rglob("*.py"):
        is_compiled = "triton" in path.stem or "cpu" in path.stem
        compiler = {"triton", "numba", "llvmlite"} if is_compiled else set()
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert roots <= ALLOWED | compiler, path.name


def test_a_room_stands_on_those_before_it() -> None:
    for place, room in enumerate(ROOMS):
        for path in (PACKAGE / room).glob("*.py"):
            rooms = {n.split(".")[1] for n in imports_of(path) if n.startswith("lynx_kernels.")}
            assert not rooms & set(ROOMS[place + 1 :]), path


def test_importing_loads_no_sglang_and_no_triton() -> None:
    check = (
        "import sys, lynx_kernels; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('sglang', 'lynx_sglang', 'lynx_controller') or m.startswith('lynx_kernels') "
        "and 'triton' in m])"
    )
    assert run(check) == "[]"


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_these(name: str) -> None:
    room = import_module(name)
    assert isinstance(room, ModuleType)
    exported = EXPORTS[name].split(", ")
    assert room.__all__ == exported
    assert all(hasattr(room, each) for each in exported)
    assert room.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        room.nothing  # noqa: B018


def test_public_functions_are_not_hidden_by_their_rooms() -> None:
    assert isinstance(lynx_kernels.select, FunctionType)
    assert isinstance(lynx_kernels.fused_moe, FunctionType)


def test_imports_work_in_any_order() -> None:
    names = "from lynx_kernels import select, fused_moe; assert callable(select)"
    code = """
import subprocess, sys
for first in {first!r}:
    for module in [m for m in sys.modules if m.startswith("lynx_kernels")]:
        del sys.modules[module]
    for line in (first, *{first!r}):
        exec(line, {{}})
    exec({names!r}, {{}})
"""
    run(code.format(first=FIRST, names=names))
