"""The table of SGLang names against the installed SGLang, and another supported one's source."""

from __future__ import annotations

import ast
import inspect
import os
import pkgutil
import re
from pathlib import Path

import pytest
import torch

from lynx_sglang import sglang_contract, sglang_names
from lynx_sglang.integration import features
from lynx_sglang.sglang_source import Source

INSTALLED = sglang_names.names_of(sglang_names.sglang_version())
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", INSTALLED, ids=lambda name: name.path.rsplit(".", 1)[-1])
def test_the_name_fits(name: sglang_names.Name) -> None:
    assert name.fault() is None


def test_a_missing_name_or_parameter_is_said() -> None:
    assert "nowhere" in str(sglang_names.Name("sglang.srt.nowhere:thing").fault())
    gone = sglang_names.Name(sglang_names.POST_PROCESS_TOPK.path, ("topk_ids", "gone"))
    assert gone.fault() == f"{gone.path}: no parameter gone"


def test_the_installed_version_is_listed() -> None:
    assert sglang_names.sglang_version() in sglang_names.SUPPORTED_VERSIONS


@pytest.fixture(scope="module")
def other() -> Source:
    """Another supported SGLang, unpacked."""
    if not (path := os.environ.get("OTHER_SGLANG")):
        pytest.skip("OTHER_SGLANG names no unpacked SGLang; `make check` fetches one")
    return Source(Path(path))


def test_the_installed_source_has_all_that_is_relied_on() -> None:
    source, arguments = Source.installed(), features.fields()
    assert source.version == sglang_names.sglang_version()
    assert list(sglang_contract.faults(source, arguments)) == []
    for name in INSTALLED:  # what is read in the source is what Python sees
        if name.parameters:
            target = pkgutil.resolve_name(name.path)
            assert set(source.parameters(name.path)) >= set(inspect.signature(target).parameters)


def test_another_supported_source_has_it_too(other: Source) -> None:
    assert other.version in set(sglang_names.SUPPORTED_VERSIONS) - {sglang_names.sglang_version()}
    assert list(sglang_contract.faults(other, features.fields())) == []


def test_what_a_version_is_said_to_lack_it_lacks(other: Source) -> None:
    lacks = sglang_names.LACKS[other.version]
    assert not [path for path, names in lacks.items() if other.attributes(path) & set(names)]
    expected = sglang_names.names_of(other.version)
    assert not [
        name.path
        for name in sglang_names.NAMES
        if name not in expected and sglang_contract.name_fault(other, name) is None
    ]


def test_sglang_calls_the_routing_hook_by_keyword() -> None:
    source = inspect.getsource(pkgutil.resolve_name("sglang.srt.layers.moe.topk:select_experts"))
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_post_process_topk_ids"
    ]
    assert len(calls) == 1
    assert not calls[0].args
    assert {"topk_ids", "topk_weights"} <= {keyword.arg for keyword in calls[0].keywords}


OTHERS = {  # read on objects of the standard library, transformers and the command's arguments
    "_replace", "apply_chat_template", "chat_template", "model_type", "parameters",
    "to_dict", "to_json_string", "value",
}  # fmt: skip
BUILTIN = {name for cls in (torch.Tensor, dict, list, str, int, type) for name in dir(cls)}
LISTS = ("enumerate", "getattr", "list", "min", "max", "resolving_view", "sorted", "tuple", "zip")
KNOWS_SGLANG = ("calibrate", "cpu", "gpu", "integration", "loop")


def root_of(node: ast.AST) -> str | None:
    """The variable that an expression starts from: ``a`` in ``list(a.b[0].c())``."""
    while True:
        if isinstance(node, ast.Call):
            is_list = isinstance(node.func, ast.Name) and node.func.id in LISTS
            node = node.args[0] if is_list else node.func
        elif isinstance(node, ast.Attribute | ast.Subscript | ast.Starred | ast.Await):
            node = node.value
        elif isinstance(node, ast.BoolOp):
            node = node.values[0]
        else:
            return node.id if isinstance(node, ast.Name) else None


def untyped(function: ast.FunctionDef) -> set[str]:
    """Variables that hold SGLang's objects: parameters of type Any, and what comes from them."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    found = {
        each.arg
        for each in arguments
        if each.annotation is not None and ast.unparse(each.annotation) in ("Any", "list[Any]")
    }
    while True:
        more = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
            elif isinstance(node, ast.For | ast.comprehension):
                target, value = node.target, node.iter
            else:
                continue
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=False))
            more |= {
                name.id
                for one, source in pairs
                if root_of(source) in found
                for name in ast.walk(one)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
        if more <= found:
            return found
        found |= more


def test_every_attribute_that_is_read_is_in_the_table() -> None:
    known = {name for names in sglang_names.ATTRIBUTES.values() for name in names}
    known |= {parameter for name in sglang_names.NAMES for parameter in name.parameters}
    known |= {name.path.rpartition(".")[2] for name in sglang_names.NAMES}
    missing = set()
    for file in (ROOT / "lynx_sglang").rglob("*.py"):
        if file.parent.name not in KNOWS_SGLANG:
            continue
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            objects = untyped(function)
            missing |= {
                f"{file.name}:{node.lineno} {node.attr}"
                for node in ast.walk(function)
                if isinstance(node, ast.Attribute)
                and root_of(node) in objects
                and node.attr not in known | BUILTIN | OTHERS
                and not node.attr.startswith(("lynx_", "__"))
            }
    assert not sorted(missing)


def test_every_imported_name_is_in_the_table() -> None:
    known = " ".join([*(name.path for name in sglang_names.NAMES), *sglang_names.ATTRIBUTES])
    missing = {
        f"{node.module}:{alias.name}"
        for file in (ROOT / "lynx_sglang").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang")
        for alias in node.names
        if alias.name not in re.split(r"[^\w]+", known)
    }
    assert not missing
