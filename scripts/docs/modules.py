"""One line per module, made from the code: its docstring's first sentence, and its importers."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from scripts.docs.markdown import table

ROOT = Path(__file__).resolve().parents[2]
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
            (f"`{name.rpartition('.')[2]}`", responsibility(known[name]), called_by(callers[name]))
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
    """Modules by the module that they import."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                targets = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            for target in targets:
                if target in known and target != name:
                    found[target].add(name)
    return found


def called_by(callers: set[str]) -> str:
    """Importers by their last names, the packages' public fronts left out."""
    names = sorted({name.removeprefix("lynx_") for name in callers if "." in name})
    return ", ".join(f"`{name.partition('.')[2]}`" for name in names)
