"""The table of SGLang names against the installed SGLang."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

from lynx_sglang import sglang_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sglang_names.NAMES, ids=lambda name: name.path.rsplit(".", 1)[-1])
def test_the_name_fits(name: sglang_names.Name) -> None:
    assert name.fault() is None


def test_a_missing_name_or_parameter_is_said() -> None:
    assert "nowhere" in str(sglang_names.Name("sglang.srt.nowhere:thing").fault())
    gone = sglang_names.Name(sglang_names.POST_PROCESS_TOPK.path, ("topk_ids", "gone"))
    assert gone.fault() == f"{gone.path}: no parameter gone"


def test_the_installed_version_is_listed() -> None:
    assert sglang_names.sglang_version() in sglang_names.SUPPORTED_VERSIONS


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


@pytest.mark.parametrize("path", sglang_names.ATTRIBUTES, ids=lambda path: path.rsplit(":", 1)[-1])
def test_objects_have_the_attributes(path: str) -> None:
    tree = ast.parse(inspect.getsource(pkgutil.resolve_name(path)))
    present = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    assert set(sglang_names.ATTRIBUTES[path]) <= present


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
