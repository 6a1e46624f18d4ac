"""The import graph of the three packages: one direction between rooms, no circle, nothing unused.

Every import counts, those inside functions and those for type checking alone too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "lynx_sglang": ROOT / "lynx_sglang",
    "lynx_kernels": ROOT / "kernels" / "lynx_kernels",
    "lynx_controller": ROOT / "controller" / "lynx_controller",
}
# Rooms are a package's folders and the modules beside them; "" is the package itself. A room
# imports rooms of the lines below its own, and no other room of its own line.
ORDER = {
    "lynx_sglang": (
        {"__main__"},
        {"cli"},
        {"launch_line", "steer", "watch"},
        {"integration", "calibrate"},
        {"cpu", "gpu", "evaluation"},
        {"loop"},
        {"settings"},
        {"calibration", "connection", "parsers", "sglang_contract"},
        {"sglang_source", "sketches"},
        {"errors", "sglang_names", ""},
    ),
    "lynx_kernels": (
        {""},
        {"fused_moe"},
        {"select"},
        {"schedule", "sketch"},
        {"device", "scratch"},
    ),
    "lynx_controller": (
        {""},
        {"fleet", "log", "pacer"},
        {"controller"},
        {"decide"},
        {"learn"},
        {"forecast"},
        {"config", "failures", "types"},
    ),
}
MAY_IMPORT = {
    "lynx_sglang": {"lynx_sglang", "lynx_kernels", "lynx_controller"},
    "lynx_kernels": {"lynx_kernels"},
    "lynx_controller": {"lynx_controller"},
}
# Entry points: those of pyproject.toml, ``python -m lynx_sglang``, and public functions.
ENTRY_POINTS = (
    "lynx_sglang.integration.plugin",
    "lynx_sglang.cpu.entry_point",
    "lynx_sglang.cli",
    "lynx_sglang.__main__",
    "lynx_kernels",
    "lynx_controller",
)
NAMED_MODULE = re.compile(r"(lynx_\w+(?:\.\w+)+):\w+")  # as SGLang's platforms name a class


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported_names(module: str) -> Iterator[str]:
    """Full names of what a module imports, modules and what is in them."""
    file = modules()[module]
    folder = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = folder.split(".")[: len(folder.split(".")) - node.level + 1]
                source = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


@cache
def graph() -> dict[str, frozenset[str]]:
    """The modules of the three packages that each module imports."""
    edges = {}
    for module in modules():
        targets = set()
        for name in imported_names(module):
            while name and name not in modules():
                name = name.rpartition(".")[0]
            targets.add(name)
        edges[module] = frozenset(targets - {module, ""})
    return edges


def room_of(module: str) -> tuple[str, str]:
    package, _, inside = module.partition(".")
    return package, inside.partition(".")[0]


def line_of(package: str, room: str) -> int:
    (line,) = [number for number, rooms in enumerate(ORDER[package]) if room in rooms]
    return line


def circles(edges: dict[str, frozenset[str]]) -> list[list[str]]:
    """A path back to itself of each module that has one."""
    found = []
    for start in edges:
        paths, seen = [[start]], {start}
        while paths:
            path = paths.pop(0)
            for target in sorted(edges[path[-1]]):
                if target == start:
                    found.append([*path, start])
                    paths = []
                    break
                if target not in seen:
                    seen.add(target)
                    paths.append([*path, target])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_its_place(package: str) -> None:
    rooms = {room_of(module)[1] for module in modules() if room_of(module)[0] == package}
    assert sorted(rooms) == sorted(room for line in ORDER[package] for room in line)


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_downwards_alone(package: str) -> None:
    wrong = []
    for module, targets in graph().items():
        _, room = room_of(module)
        for target in sorted(targets) if room_of(module)[0] == package else ():
            if room_of(target)[0] != package or room_of(target)[1] == room:
                continue
            if line_of(package, room_of(target)[1]) <= line_of(package, room):
                wrong.append(f"{module} imports {target}")
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    found = {
        room_of(target)[0]
        for module, targets in graph().items()
        if room_of(module)[0] == package
        for target in targets
    }
    assert found <= MAY_IMPORT[package]


def test_no_module_imports_itself_through_others() -> None:
    assert not circles(graph())


def test_a_circle_is_found() -> None:
    edges = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b"), "d": frozenset("a")}
    assert circles(edges) == [["b", "c", "b"], ["c", "b", "c"]]


def test_every_module_is_reached_from_the_product() -> None:
    reached: set[str] = set()
    waiting = list(ENTRY_POINTS)
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        named = NAMED_MODULE.findall(modules()[module].read_text())
        parent = module.rpartition(".")[0]  # Python imports it first
        waiting += [*graph()[module], *(name for name in named if name in modules())]
        waiting += [parent] if parent else []
    assert not sorted(modules().keys() - reached)


def test_entry_points_are_those_of_the_distribution() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert set(re.findall(r'= "(lynx_\w+(?:\.\w+)+):\w+"', text)) == {
        "lynx_sglang.cli",
        "lynx_sglang.integration.plugin",
        "lynx_sglang.cpu.entry_point",
    }


def third_parties(package: str) -> dict[str, set[str]]:
    """Of each module of a package, the imported distributions that are not this one's."""
    known = {*sys.stdlib_module_names, *PACKAGES}
    return {
        module: {name.partition(".")[0] for name in imported_names(module)} - known
        for module in modules()
        if room_of(module)[0] == package
    }


def test_kernels_need_torch_and_the_compilers_alone() -> None:
    for module, found in third_parties("lynx_kernels").items():
        name = module.rpartition(".")[2]
        is_compiled = "triton" in name or "cpu" in name
        compilers = {"triton", "numba", "llvmlite"} if is_compiled else set()
        assert found <= {"numpy", "torch", *compilers}, module


def test_the_controller_needs_numpy_alone_and_its_store_what_it_connects_to() -> None:
    for module, found in third_parties("lynx_controller").items():
        stores = {"redis", "sklearn"} if room_of(module)[1] == "fleet" else set()
        assert found <= {"numpy", *stores}, module


def test_only_the_refit_job_waits_by_the_clock() -> None:
    clocked = {
        module
        for module in modules()
        if module.startswith("lynx_controller")
        and "time" in {name.partition(".")[0] for name in imported_names(module)}
    }
    assert clocked == {"lynx_controller.fleet.refit"}
