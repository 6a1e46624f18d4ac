"""One line per module, made from the code: its docstring's first sentence, and its importers."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from scripts.docs.markdown import table

ROOT = Path(__file__).resolve().parents[2]
MANY = 5  # importers, above which only their number is said
SOURCES = {
    "lynx_sglang": ROOT,
    "lynx_kernels": ROOT / "kernels",
    "lynx_controller": ROOT / "controller",
}


def modules_table() -> str:
    """A section per package, a table per room."""
    known = modules()
    callers = importers(known)
    rooms: dict[str, list[str]] = defaultdict(list)
    for name in known:
        rooms[name if is_package(known[name]) else name.rpartition(".")[0]].append(name)
    sections = []
    for room in sorted(rooms, key=lambda name: (list(SOURCES).index(name.split(".")[0]), name)):
        level = "###" if room in SOURCES else "####"
        rows = [
            (
                f"`{name.rpartition('.')[2]}`",
                responsibility(known[name]),
                called_by(name, callers[name]),
            )
            for name in rooms[room]
            if not is_package(known[name])
        ]
        about = responsibility(known[room])
        text = f"{level} {room}\n\n{about}\n"
        sections.append(text + "\n" + table(("Module", "Responsibility", "Used by"), rows))
    return "\n\n".join(sections)


def modules() -> dict[str, Path]:
    """Files of the three packages by module name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def responsibility(path: Path) -> str:
    """The first sentence of a module's docstring, as Markdown."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    first = re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0]
    return first.replace("``", "`")


def importers(known: dict[str, Path]) -> dict[str, set[str]]:
    """Modules by the module that they import, packages' fronts seen through."""
    fronts = {
        f"{name}.{exported}": target
        for name, path in known.items()
        if is_package(path)
        for exported, target in imports(path, known).items()
    }
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in known.items():
        if is_package(path):
            continue
        named = re.findall(r'"(lynx_[\w.]+):\w+"', path.read_text())  # a class by its path
        for target in [*imports(path, known).values(), *named]:
            while target in fronts and fronts[target] != target:
                target = fronts[target]
            module = target if target in known else target.rpartition(".")[0]
            if module != name:
                found[module].add(name)
    return found


def imports(path: Path, known: dict[str, Path]) -> dict[str, str]:
    """Names that a module imports from the three packages, as ``module.name``."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name: alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            found |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def called_by(name: str, callers: set[str]) -> str:
    """Importers by their names inside their package; only their number where there are many."""
    if entry := entry_points().get(name):
        return entry
    if not callers:
        return "callers outside: tests, benchmarks"
    if len(callers) > MANY:
        return f"{len(callers)} modules"
    return ", ".join(f"`{caller.partition('.')[2]}`" for caller in sorted(callers))


@cache
def entry_points() -> dict[str, str]:
    """Modules that are started from outside by who starts them, from ``pyproject.toml``."""
    project = (ROOT / "pyproject.toml").read_text()
    started = re.findall(r'^[\w-]+ = "(lynx_[\w.]+):\w+"$', project, re.MULTILINE)
    return {name: "SGLang, by entry point" for name in started} | {
        "lynx_sglang.cli": "the command `lynx-sglang`",
        "lynx_sglang.__main__": "`python -m lynx_sglang`",
    }
