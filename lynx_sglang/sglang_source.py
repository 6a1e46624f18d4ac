"""An SGLang that is read and not imported: a wheel, or a folder with the package in it.

Any version can be compared with the table of names this way, without its dependencies.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_sglang.errors import LynxError

PACKAGE = "sglang"
# Classes that SGLang assembles at import, by the package whose classes hold their fields.
ASSEMBLED = {"sglang.srt.server_args:ServerArgs": "sglang.srt.arg_groups.fields"}
RE_EXPORTS = 8  # followed at most: two modules may import from each other
METADATA = re.compile(rf"(?:^|/){PACKAGE}-([^/]+)\.dist-info/METADATA$")


class NotSGLang(LynxError):
    """A path that holds no SGLang."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A module, function, class or assignment, and the module that it is written in."""

    module: str
    node: ast.stmt | ast.Module


class Source:
    """The Python files of one SGLang.

    Args:
        path: a wheel, or a folder that has ``sglang`` in it: an unpacked wheel, ``site-packages``.

    Raises:
        NotSGLang: there is none.
    """

    def __init__(self, path: Path) -> None:
        names, self._read = opened(path)
        self._files = {
            module_of(name): name
            for name in names
            if name.startswith(f"{PACKAGE}/") and name.endswith(".py")
        }
        self._trees: dict[str, ast.Module | None] = {}
        if PACKAGE not in self._files:
            raise NotSGLang(f"{path}: has no {PACKAGE}/__init__.py")
        found = [match.group(1) for name in names if (match := METADATA.search(name))]
        self.version = found[0] if found else "unknown"

    @classmethod
    def installed(cls) -> Source:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise NotSGLang(f"{PACKAGE} is not installed")
        return cls(Path(spec.origin).parents[1])

    def text(self, module: str) -> str:
        """A module's source; empty where there is no such module."""
        return self._read(self._files[module]) if module in self._files else ""

    def tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            known = module in self._files
            self._trees[module] = ast.parse(self.text(module)) if known else None
        return self._trees[module]

    def find(self, path: str) -> Definition | None:
        """The definition of ``module:name.name``, through re-exports and base classes."""
        module, _, names = path.partition(":")
        if submodule := self.tree(f"{module}.{names}"):
            return Definition(f"{module}.{names}", submodule)
        first, *rest = names.split(".")
        found = self._in_module(module, first)
        for name in rest:
            found = self._in_class(found, name) if found else None
        return found

    def parameters(self, path: str) -> tuple[str, ...]:
        """Names that a function takes, or a class to make one; none for anything else.

        A class of fields (a dataclass, a msgspec struct) takes its fields.
        """
        found = self.find(path)
        if found is None:
            return ()
        if isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return arguments_of(found.node)
        init = self._in_class(found, "__init__")
        if init is not None and isinstance(init.node, ast.FunctionDef):
            return arguments_of(init.node)[1:]
        owners = reversed(list(self._owners(found)))
        return tuple(dict.fromkeys(name for _module, node in owners for name in fields_of(node)))

    def attributes(self, path: str) -> set[str]:
        """Methods and fields of a class and its bases, and the attributes that methods set.

        They set them on ``self``, or on the layer that a quantisation method prepares.
        """
        found = self.find(path)
        owners = [node for _module, node in self._owners(found)] if found else []
        for module in self._files if path in ASSEMBLED else ():
            if module.startswith(f"{ASSEMBLED[path]}."):
                body = self.tree(module)
                owners += [node for node in body.body if isinstance(node, ast.ClassDef)]  # type: ignore[union-attr]
        return {name for owner in owners for name in names_set_in(owner)}

    def places_of(self, name: str) -> list[str]:
        """Paths of all functions, classes and methods of this name."""
        pattern = re.compile(rf"^\s*(?:class|def|async def) {re.escape(name)}\b", re.MULTILINE)
        found = []
        for module in sorted(self._files):
            if not pattern.search(self.text(module)):
                continue
            tree = self.tree(module)
            assert tree is not None
            for node in statements_of(tree):
                if is_definition(node) and defines(node, name):
                    found.append(f"{module}:{name}")
                elif isinstance(node, ast.ClassDef):
                    members = (each for each in statements_of(node) if is_definition(each))
                    if any(defines(each, name) for each in members):
                        found.append(f"{module}:{node.name}.{name}")
        return found

    def _in_module(self, module: str, name: str, depth: int = RE_EXPORTS) -> Definition | None:
        tree = self.tree(module)
        for node in statements_of(tree) if tree is not None and depth else ():
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if name != (alias.asname or alias.name):
                        continue
                    source = self._imported(module, node)
                    if found := self._in_module(source, alias.name, depth - 1):
                        return found
            elif defines(node, name):
                return Definition(module, node)
        return None

    def _imported(self, module: str, node: ast.ImportFrom) -> str:
        """Full name of the module after ``from``."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        is_package = self._files[module].endswith("/__init__.py")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def _in_class(self, owner: Definition, name: str) -> Definition | None:
        for module, node in self._owners(owner):
            for statement in statements_of(node):
                if defines(statement, name):
                    return Definition(module, statement)
        return None

    def _owners(self, owner: Definition) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class and those of its bases that SGLang defines, each with its module."""
        if not isinstance(owner.node, ast.ClassDef):
            return
        yield owner.module, owner.node
        for base in owner.node.bases:
            name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
            found = self._in_module(owner.module, name)
            if found is not None and found.node is not owner.node:
                yield from self._owners(found)


def opened(path: Path) -> tuple[list[str], Callable[[str], str]]:
    """Names of the files in a wheel or folder, relative to it, and the function that reads one."""
    if path.is_dir():
        patterns = (f"{PACKAGE}/**/*.py", f"{PACKAGE}-*.dist-info/METADATA")
        files = [file for pattern in patterns for file in path.glob(pattern)]
        names = [file.relative_to(path).as_posix() for file in files]
        return names, lambda name: (path / name).read_text(encoding="utf-8")
    if not zipfile.is_zipfile(path):
        raise NotSGLang(f"{path}: expected a wheel, or a folder with {PACKAGE} in it")
    wheel = zipfile.ZipFile(path)
    return wheel.namelist(), lambda name: wheel.read(name).decode("utf-8")


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def statements_of(node: ast.Module | ast.ClassDef) -> Iterator[ast.stmt]:
    """Statements of a module or class, those below ``if``, ``try`` and ``with`` too."""
    waiting: list[Any] = list(node.body)
    while waiting:
        statement = waiting.pop(0)
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            for block in ("body", "handlers", "orelse", "finalbody"):
                waiting += getattr(statement, block, [])


def is_definition(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)


def defines(node: ast.stmt, name: str) -> bool:
    """Whether a statement defines this name, or assigns to it."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name == name
    return name in assigned_by(node)


def assigned_by(node: ast.stmt) -> set[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    names = (each for target in targets for each in ast.walk(target))
    return {each.id for each in names if isinstance(each, ast.Name)}


def arguments_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    args = function.args
    rest = (args.vararg, *args.kwonlyargs, args.kwarg)
    return tuple(each.arg for each in (*args.posonlyargs, *args.args, *rest) if each is not None)


def fields_of(owner: ast.ClassDef) -> Iterator[str]:
    for statement in statements_of(owner):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id


def names_set_in(owner: ast.ClassDef) -> Iterator[str]:
    for statement in statements_of(owner):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
        yield from assigned_by(statement)
    for node in ast.walk(owner):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "layer")
        ):
            yield node.attr
