"""SGLang's model code with routed experts: how Lynx serves each file, or why it does not.

A test scans the wheel for such code, so that a new file is read before it is served.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path


class Way(Enum):
    """The way to serve the MoE layers of a model file."""

    SELECTED = "selection before the runner"
    RESCALED = "selection before SGLang's own runner: weights are scaled after it"
    SEPARATE_SHARED = "selection before the runner: shared experts run apart, as no slot of top-k"
    ENCODER = "experts of an encoder, which are left alone"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file below ``sglang/srt``; ``architectures``: those to refuse or to set apart, by name."""

    path: str
    way: Way
    architectures: tuple[str, ...] = ()
    reason: str = ""


EXTERNAL_MODELS = "SGLANG_EXTERNAL_MODEL_PACKAGE"
CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
OWN_ROUTING = "its layers route by themselves, where nothing can be selected"
OWN_EXPERTS = "its layers run their experts without SGLang's MoE layer"


# Served on a GPU, where Lynx's selection stands before SGLang's own runner.
REFUSED_ON_CPU = {
    "BeamForCausalLM": "its code refuses every runner but SGLang's own, and Lynx's runs on a CPU",
}


def _selected(*names: str) -> tuple[ModelFile, ...]:
    return tuple(ModelFile(f"models/{name}.py", Way.SELECTED) for name in names)


MODEL_FILES: tuple[ModelFile, ...] = (
    *_selected(
        "bailing_moe", "bailing_moe_linear", "bailing_moe_v3", "beam", "cohere2_moe",
        "deepseek_v2", "dots3_common/modeling", "ernie4", "exaone_moe", "gemma4_causal",
        "glm4_moe", "glm4_moe_lite", "gpt_oss", "granitemoe", "grok", "hunyuan", "hunyuan_v3",
        "interns1pro", "interns2_mobius", "iquest_q1", "kimi_linear", "laguna", "lfm2_moe",
        "llama4", "mimo_v2", "minimax_m2", "minimax_m3", "mixtral", "nemotron_h", "olmoe",
        "phimoe", "qwen3_moe", "sarvam_moe", "sdar_moe", "step3_vl",
    ),
    ModelFile("models/step3p5.py", Way.RESCALED),
    ModelFile("models/xllm.py", Way.RESCALED),
    ModelFile(
        "models/qwen2_moe.py", Way.SEPARATE_SHARED,
        (
            "Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration",
            "InternS2MobiusForConditionalGeneration", "Qwen4ExpForConditionalGeneration",
        ),
    ),
    ModelFile(
        "models/longcat_flash.py", Way.REFUSED, ("LongcatFlashForCausalLM",),
        "its tokens also route to zero experts, which no layer runs",
    ),
    ModelFile("models/dots3_common/dots_omni_vision.py", Way.ENCODER),
    ModelFile(
        "models/muse_spark.py", Way.REFUSED, ("MuseSparkForConditionalGeneration",), OWN_ROUTING
    ),
    ModelFile("models/zaya.py", Way.REFUSED, ("ZayaForCausalLM",), OWN_ROUTING),
    ModelFile(
        "models/kimi_k3.py", Way.REFUSED,
        ("KimiK3ForConditionalGeneration", "KimiK3LinearForCausalLM"), OWN_ROUTING,
    ),
    ModelFile(
        "models/inkling_common/moe.py", Way.REFUSED,
        ("InklingForConditionalGeneration",), OWN_ROUTING,
    ),
    ModelFile("models/llada2.py", Way.REFUSED, ("LLaDA2MoeModelLM",), OWN_ROUTING),
    ModelFile(
        "models/transformers.py", Way.REFUSED,
        (
            "TransformersForCausalLM", "TransformersMoEForCausalLM",
            "TransformersMultiModalForCausalLM", "TransformersMultiModalMoEForCausalLM",
        ),
        OWN_ROUTING,
    ),
    ModelFile(
        "multimodal/dsv41/vl_routing.py", Way.REFUSED, ("DeepseekV4ForCausalLM",),
        "its first layers route by a table of token ids, where nothing can be selected",
    ),
    ModelFile(
        "models/ernie45_moe_vl.py", Way.REFUSED, ("Ernie4_5_VLMoeForConditionalGeneration",),
        "a layer has two sets of experts, one for text and one for images",
    ),
    ModelFile("models/afmoe.py", Way.REFUSED, ("AfmoeForCausalLM",), OWN_EXPERTS),
    ModelFile("models/dbrx.py", Way.REFUSED, ("DbrxForCausalLM",), OWN_EXPERTS),
    ModelFile("models/deepseek.py", Way.REFUSED, ("DeepseekForCausalLM",), OWN_EXPERTS),
    ModelFile("models/xverse_moe.py", Way.REFUSED, ("XverseMoeForCausalLM",), OWN_EXPERTS),
)  # fmt: skip


def of(architectures: Iterable[str] | None) -> ModelFile | None:
    """The file that names one of a configuration's ``architectures``; None where none does."""
    given = set(architectures or ())
    return next((file for file in MODEL_FILES if given & set(file.architectures)), None)


def refusal(architectures: Iterable[str] | None) -> str | None:
    """The reason to refuse a model by its architecture's name; None if the name gives none."""
    file = of(architectures)
    if file is None and architectures and not is_sglangs(architectures):
        return (
            f"--model-path of a {' '.join(architectures)} is not served: SGLang has no code of its "
            f"own for it and runs that of Transformers: {OWN_ROUTING}. "
            "Serve it without --moe-backend lynx."
        )
    if file is None or file.way is not Way.REFUSED:
        return None
    named = " ".join(name for name in architectures or () if name in file.architectures)
    return (
        f"--model-path of a {named} is not served: {file.reason}. "
        "Serve it without --moe-backend lynx."
    )


def refusal_on_cpu(architectures: Iterable[str] | None) -> str | None:
    """The reason to refuse a model on a CPU, beyond ``refusal``; None if it is served."""
    for name in architectures or ():
        if name in REFUSED_ON_CPU:
            return (
                f"--model-path of a {name} is not served on a CPU: {REFUSED_ON_CPU[name]}. "
                "Serve it without --moe-backend lynx."
            )
    return None


@cache
def classes() -> frozenset[str]:
    """Names of all classes in SGLang's model code, which is read and not imported."""
    origin = getattr(importlib.util.find_spec("sglang"), "origin", None)
    folder = Path(str(origin)).parent / "srt" / "models"
    texts = (path.read_text() for path in folder.rglob("*.py"))
    return frozenset(name for text in texts for name in CLASS.findall(text))


def is_sglangs(architectures: Iterable[str]) -> bool:
    """Whether SGLang runs its own code, or that of an external package, for one of these."""
    if not classes().isdisjoint(architectures):
        return True
    if not os.environ.get(EXTERNAL_MODELS):
        return False
    from sglang.srt.models.registry import ModelRegistry

    return any(ModelRegistry.is_arch_supported(name) for name in architectures)


def has_appended_shared_experts(architectures: Iterable[str] | None) -> bool:
    """Whether SGLang would append shared experts to top-k's slots after selection."""
    file = of(architectures)
    return file is not None and file.way is Way.SEPARATE_SHARED
