"""Every file of the wheel that builds or edits a MoE layer's routing is classified."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from lynx_sglang.integration import model_files
from lynx_sglang.integration.model_files import MODEL_FILES, Way

SRT = Path(str(importlib.util.find_spec("sglang").origin)).parent / "srt"  # type: ignore[union-attr]
LAYERS = {"FusedMoE", "TopK", "HashTopK", "get_moe_impl_class"}
# Calls after which the runner sees other ids or weights than top-k's post-processing gave.
EDITS = {"StandardTopKOutput", "StandardTopKOutputPacked", "build_precomputed_topk_output"}
BYPASSES = {"_post_process_topk_ids", "fused_moe"}
# Edits that were read and keep what selection made: a gather or a view for a kernel of Blackwell.
HARMLESS = {"models/minimax_m3.py": {"StandardTopKOutput"}}


@cache
def calls_of(path: Path) -> frozenset[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            names.add(str(name))
        elif isinstance(node, ast.ClassDef):
            names |= {ast.unparse(base) for base in node.bases} & LAYERS
    return frozenset(names)


def is_scaled(path: Path) -> bool:
    """Whether weights of a routing are multiplied."""
    return bool(re.search(r"topk_output\.topk_weights \*", path.read_text()))


def scanned() -> dict[str, Path]:
    files = [path for room in ("models", "multimodal") for path in (SRT / room).rglob("*.py")]
    return {
        str(path.relative_to(SRT)): path
        for path in files
        if calls_of(path) & (LAYERS | EDITS | BYPASSES)
    }


def test_every_file_with_experts_is_classified_once() -> None:
    paths = [file.path for file in MODEL_FILES]
    assert len(paths) == len(set(paths))
    assert set(scanned()) == set(paths), "read what is new, then put it in the table"


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.path)
def test_the_class_fits_what_the_file_does(file: model_files.ModelFile) -> None:
    path = SRT / file.path
    edits = calls_of(path) & (EDITS | BYPASSES) - HARMLESS.get(file.path, set())
    if file.way is Way.SELECTED:
        assert not edits
        assert not is_scaled(path)
    elif file.way is Way.RESCALED:
        assert is_scaled(path)
    elif file.way is Way.SEPARATE_SHARED:
        assert "_append_shared_to_topk_output" in calls_of(path)
        assert "disable_shared_experts_fusion is True" in path.read_text()
    elif file.way is Way.REFUSED:
        assert file.architectures
        assert file.reason


def test_names_are_the_wheels() -> None:
    defined = set()
    for path in (SRT / "models").rglob("*.py"):
        defined |= set(re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE))
    assert {name for file in MODEL_FILES for name in file.architectures} <= defined


def test_models_that_append_shared_experts_are_all_named() -> None:
    """They pass ``support_shared_expert_fusion`` on to the block, by themselves or a base."""
    appending = {
        path.stem
        for path in (SRT / "models").rglob("*.py")
        if "enable_cuda_shared_expert_fusion=True" in path.read_text()
    }
    assert appending <= {"qwen3_next", "qwen3_5", "qwen3_5_text", "interns2_mobius", "qwen4_exp"}


def test_a_refused_model_is_named() -> None:
    line = str(model_files.refusal(["ZayaForCausalLM"]))
    assert line.startswith("--model-path of a ZayaForCausalLM is not served: its layers route by")
    assert model_files.refusal(["Qwen3MoeForCausalLM"]) is None
    assert model_files.refusal(None) is None
    assert model_files.has_appended_shared_experts(["Qwen3NextForCausalLM"])
    assert not model_files.has_appended_shared_experts(["Qwen3MoeForCausalLM"])


def test_a_model_that_sglang_leaves_to_transformers_is_refused() -> None:
    line = str(model_files.refusal(["Dots1ForCausalLM"]))
    assert line.startswith("--model-path of a Dots1ForCausalLM is not served: SGLang has no code")


def test_every_class_that_sglang_serves_is_found() -> None:
    """SGLang looks for architectures among the names in ``EntryClass``."""
    served = set()
    for path in (SRT / "models").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EntryClass":
                served |= {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
    assert len(served) > 100
    assert served <= model_files.classes()


def test_a_model_that_takes_no_other_runner_is_refused_on_a_cpu_alone() -> None:
    (name,) = model_files.REFUSED_ON_CPU
    assert model_files.refusal([name]) is None
    assert f"a {name} is not served on a CPU: its code" in str(model_files.refusal_on_cpu([name]))
    assert model_files.refusal_on_cpu(["MixtralForCausalLM"]) is None
