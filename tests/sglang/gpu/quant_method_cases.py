"""SGLang's own quantisation classes for experts, built on tiny layers, and what runs each of them.

Run by test_gpu_path.py in a process of its own. Hardware is pretended where a class insists on it;
which runner it chooses is its own doing.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers import quantization
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.moe_runner import flashinfer_cutlass, flashinfer_trtllm  # noqa: F401
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.moe.utils import MoeRunnerBackend, RoutingMethodType
from sglang.srt.layers.quantization import (
    marlin_utils,
    modelopt_quant,
    moe_wna16,
    mxfp4,
    mxfp4_flashinfer_cutlass_moe,
)
from sglang.srt.layers.quantization.compressed_tensors import compressed_tensors
from sglang.srt.runtime_context import get_flags, override_platform

from lynx_sglang.errors import UnsupportedError
from lynx_sglang.gpu import fused_runner
from lynx_sglang.gpu.device_path import DevicePath, Sizes
from lynx_sglang.gpu.expert_layers import ExpertLayers
from lynx_sglang.integration import model_files
from lynx_sglang.integration.experts import around_init, bind_backend
from lynx_sglang.integration.features import FEATURES
from lynx_sglang.integration.formats import Experts, widens

pytestmark = pytest.mark.usefixtures("one_rank")
E, K, H, INNER = 4, 2, 256, 128
SRT = Path(str(importlib.util.find_spec("sglang").origin)).parent / "srt"  # type: ignore[union-attr]

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm",
       "modules_to_not_convert": []}  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
         "symmetric": True, "dynamic": False}  # fmt: skip


def compressed(format_: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> Any:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return compressed_tensors.CompressedTensorsConfig.from_config(
        {"format": format_, "ignore": [], "config_groups": {"experts": group}}
    )


def quark(granularity: str) -> Any:
    spec = {"dtype": "fp8_e4m3", "qscheme": granularity, "is_dynamic": False}
    inputs = {**spec, "is_dynamic": True}
    every = {"weight": spec, "input_tensors": inputs, "output_tensors": None, "bias": None}
    return quantization.QuarkConfig.from_config(
        {"quant_method": "quark", "export": {"kv_cache_group": [], "pack_method": "reorder"},
         "global_quant_config": every, "layer_quant_config": {}, "layer_type_quant_config": {},
         "exclude": [], "packed_modules_mapping": {}}
    )  # fmt: skip


def of(name: str, declared: dict[str, Any] | None = None, **made: Any) -> Callable[[], Any]:
    """A configuration of SGLang's by its registered name, from a checkpoint's or from arguments."""

    def make() -> Any:
        kind = {**quantization.QUANTIZATION_METHODS, "mxfp4": mxfp4.Mxfp4Config}[name]
        return kind(**made) if declared is None else kind.from_config(declared)

    return make


@dataclass(frozen=True, slots=True)
class Format:
    """A quantisation of experts: SGLang's class for it, and SGLang's own choice of a runner."""

    name: str
    make: Callable[[], Any]
    method: str  # class
    runner: str | None  # None: a kernel of its own
    reason: str = ""  # why Lynx's kernels do not run it; empty where they do
    scheme: str = ""  # class beside the method
    arch: int = 90
    is_refused: bool = False  # its runner routes inside its kernel
    asked: str = "auto"  # --moe-runner-backend


CT = "CompressedTensorsFusedMoEMethod"
NO_TRITON = "has no Triton runner"
FORMATS = (
    Format("none", lambda: None, "UnquantizedFusedMoEMethod", "triton"),
    Format(
        "none, old", lambda: None, "UnquantizedFusedMoEMethod", "triton",
        "compute capability 7.5", arch=75,
    ),
    Format(
        "fp8, block", of("fp8", is_checkpoint_fp8_serialized=True, weight_block_size=[128, 128]),
        "Fp8MoEMethod", "triton",
    ),
    Format("fp8, online", of("fp8"), "Fp8MoEMethod", "triton"),
    Format(
        "fp8, other block",
        of("fp8", is_checkpoint_fp8_serialized=True, weight_block_size=[64, 128]),
        "Fp8MoEMethod", "triton", "[64, 128] block",
    ),
    Format("fp8, Ampere", of("fp8"), "Fp8MoEMethod", "triton", "compute capability 8.0", arch=80),
    Format(
        "mxfp8", of("fp8", is_checkpoint_fp8_serialized=True, use_mxfp8=True,
                    weight_block_size=[1, 32]),
        "Fp8MoEMethod", "triton", "MXFP8", arch=100,
    ),
    Format(
        "w8a8_fp8", of("w8a8_fp8", is_checkpoint_fp8_serialized=True), "W8A8FP8MoEMethod", "triton"
    ),
    Format(
        "modelopt_fp8", of("modelopt_fp8", is_checkpoint_fp8_serialized=True),
        "ModelOptFp8MoEMethod", "triton",
    ),
    Format(
        "compressed fp8, row",
        lambda: compressed("float-quantized", {**FP8, "strategy": "channel"}, TOKEN),
        CT, "triton", scheme="CompressedTensorsW8A8Fp8MoE",
    ),
    Format("awq_marlin", of("awq_marlin", AWQ), "AWQMoEMethod", "marlin", NO_TRITON,
           scheme="AWQMoEScheme"),
    Format("gptq_marlin", of("gptq_marlin", GPTQ), "GPTQMarlinMoEMethod", "marlin", NO_TRITON,
           scheme="GPTQMarlinMoEScheme", arch=80),
    Format("moe_wna16, gptq", of("moe_wna16", GPTQ), "MoeWNA16Method", "triton",
           "weights of MoeWNA16Method"),
    Format("moe_wna16, awq", of("moe_wna16", AWQ), "MoeWNA16Method", "triton",
           "weights of MoeWNA16Method"),
    Format(
        "auto-round",
        of("auto-round", {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True,
                          "packing_format": "auto_round:auto_gptq"}),
        "GPTQMarlinMoEMethod", "marlin", NO_TRITON, scheme="GPTQMarlinMoEScheme",
    ),
    Format("compressed int4", lambda: compressed("pack-quantized", INT4), CT, "marlin", NO_TRITON,
           scheme="CompressedTensorsWNA16MoE"),
    Format("compressed int4, Blackwell", lambda: compressed("pack-quantized", INT4), CT, "triton",
           "weights of CompressedTensorsWNA16TritonMoE", arch=100,
           scheme="CompressedTensorsWNA16TritonMoE"),
    Format("compressed int8 weights", lambda: compressed("pack-quantized", INT8), CT, "marlin",
           NO_TRITON, scheme="CompressedTensorsWNA16MoE"),
    Format("compressed mxint4, trtllm", lambda: compressed("pack-quantized", INT4), CT,
           "flashinfer_trtllm", NO_TRITON, scheme="CompressedTensorsMxInt4MoE", arch=100,
           is_refused=True, asked="flashinfer_trtllm"),
    Format(
        "compressed int4, fp8 activations",
        lambda: compressed("pack-quantized", {**INT4, "group_size": 128, "dynamic": False}, TOKEN),
        CT, None, NO_TRITON, scheme="CompressedTensorsW4AFP8MoE",
    ),
    Format(
        "compressed nvfp4, Hopper",
        lambda: compressed("nvfp4-pack-quantized", NVFP4, {**NVFP4, "dynamic": "local"}),
        CT, "marlin", NO_TRITON, scheme="CompressedTensorsW4A16Nvfp4MoE",
    ),
    Format(
        "compressed nvfp4, Blackwell",
        lambda: compressed("nvfp4-pack-quantized", NVFP4, {**NVFP4, "dynamic": "local"}),
        CT, "flashinfer_cutlass", NO_TRITON, scheme="CompressedTensorsW4A4Nvfp4MoE", arch=100,
    ),
    Format("modelopt_fp4, Hopper",
           of("modelopt_fp4", is_checkpoint_nvfp4_serialized=True, group_size=16),
           "ModelOptNvFp4FusedMoEMethod", "marlin", NO_TRITON),
    Format("modelopt_fp4, Blackwell",
           of("modelopt_fp4", is_checkpoint_nvfp4_serialized=True, group_size=16),
           "ModelOptNvFp4FusedMoEMethod", "flashinfer_trtllm", NO_TRITON, arch=100,
           is_refused=True),
    Format("nvfp4_online", of("nvfp4_online"), "ModelOptNvFp4OnlineFusedMoEMethod",
           "flashinfer_trtllm_routed", NO_TRITON, arch=100, asked="flashinfer_trtllm_routed"),
    Format("minimax_m3_nvfp4", of("minimax_m3_nvfp4", {}), CT, "marlin", NO_TRITON,
           scheme="MiniMaxM3Nvfp4MoE"),
    Format("mxfp4", of("mxfp4", {"quant_method": "mxfp4"}), "Mxfp4MoEMethod", "triton",
           "weights of Mxfp4MoEMethod", is_refused=True),  # SGLang would widen it
    Format("mxfp4, marlin", of("mxfp4", {"quant_method": "mxfp4"}), "Mxfp4MoEMethod", "marlin",
           NO_TRITON, asked="marlin"),
    Format("w8a8_int8", of("w8a8_int8"), "W8A8Int8MoEMethod", "triton",
           "weights of W8A8Int8MoEMethod"),
    Format(
        "blockwise_int8",
        of("blockwise_int8", is_checkpoint_int8_serialized=True, weight_block_size=[128, 128]),
        "BlockInt8MoEMethod", "triton", "weights of BlockInt8MoEMethod",
    ),
    Format("w4afp8", of("w4afp8"), "W4AFp8MoEMethod", None, NO_TRITON),
    Format("gguf", of("gguf"), "GGUFMoEMethod", None, NO_TRITON),
    Format("humming", of("humming", GPTQ), "HummingMoEMethod", "humming", NO_TRITON),
    *(
        Format(
            f"fp8 with fp4 experts, {asked or 'none'}, {arch}",
            of("fp8", is_checkpoint_fp8_serialized=True, weight_block_size=[128, 128],
               is_fp4_experts=True),
            method, runner, reason, arch=arch, asked=asked,
        )
        for asked, arch, method, runner, reason in (
            ("auto", 90, "Fp8MoEMethod", "triton", "MXFP8 and FP4 experts"),
            ("marlin", 90, "Mxfp4MarlinMoEMethod", "marlin", NO_TRITON),
            ("humming", 90, "Mxfp4HummingMoEMethod", "humming", NO_TRITON),
            ("flashinfer_mxfp4", 90, "Mxfp4FlashinferCutlassMoEMethod", "flashinfer_mxfp4",
             NO_TRITON),
            ("flashinfer_mxfp4", 100, "Mxfp4FlashinferTrtllmMoEMethod", "flashinfer_mxfp4",
             NO_TRITON),
        )
    ),
    Format("quark fp8", lambda: quark("per_channel"), "QuarkFusedMoEMethod", "triton",
           "weights of QuarkW8A8FP8MoE", scheme="QuarkW8A8FP8MoE"),
    Format("bitsandbytes", of("bitsandbytes"), "BitsAndBytesMoEMethod", None, NO_TRITON),
)  # fmt: skip
OTHER_HARDWARE = {  # never on an NVIDIA GPU
    "AWQAscendMoEScheme", "AWQIntelAMXMoEKernel", "AWQIntelAMXMoEScheme", "GGUFMoEAscendMethod",
    "GPTQIntelAMXMoEKernel", "GPTQIntelAMXMoEScheme", "GPTQMoEAscendScheme", "GPTQMoEMethod",
    "ModelSlimFusedMoEMethod", "Mxfp4DynamicQuantMoEMethod", "QuarkInt4Fp8MoEMethod",
    "QuarkW4A4MXFp4MoE", "QuarkW4A8MXFp4MoE",
}  # fmt: skip
BASES = {
    "AWQMoESchemeBase", "CompressedTensorsMoEScheme", "FusedMoEMethodBase", "GPTQMoESchemeBase",
    "GPTQMarlinMoEKernel", "QuarkMoEScheme",
}  # fmt: skip
# Of what is refused, by the flag or the model that it comes with.
REFUSED = {
    "ExpertPackMoEMethod": "--load-format",
    "KTEPWrapperMethod": "--kt-weight-path",
    "PagedExpertsMoEMethod": "--enable-paged-experts",
    "InklingMoEMethodBase": "InklingForConditionalGeneration",
    "InklingNvfp4MoEMethod": "InklingForConditionalGeneration",
    "_InklingUnquantizedFusedMoEMethod": "InklingForConditionalGeneration",
    "MuseSparkNvFp4FusedMoEMethod": "MuseSparkForConditionalGeneration",
}
# Made by a model's own code; it changes nothing that Lynx reads.
AS_ITS_BASE = {"BeamUnquantizedFusedMoEMethod": "UnquantizedFusedMoEMethod"}


@contextmanager
def gpu(monkeypatch: pytest.MonkeyPatch, arch: int) -> Iterator[None]:
    """A GPU of this compute capability, as far as quantisation asks for one."""
    capability = divmod(arch, 10)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
    for module in (marlin_utils, modelopt_quant, moe_wna16):
        monkeypatch.setattr(module, "get_device_capability", lambda _device=0: capability)
    monkeypatch.setattr(modelopt_quant, "is_cuda", lambda: True)
    monkeypatch.setattr(mxfp4_flashinfer_cutlass_moe, "is_flashinfer_available", lambda: True)
    monkeypatch.setattr(fused_runner, "arch_of", lambda _device: arch)
    library = SimpleNamespace(__version__="1.0")
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)  # type: ignore[arg-type]
    facts = {"is_cuda": True, "is_sm90": arch == 90, "is_sm100": arch == 100}
    with override_platform(**facts, is_blackwell=arch == 100, has_flashinfer=True):
        yield


def built(config: Any, runner: str, build: Callable[..., None] = FusedMoE.__init__) -> Any:
    """A layer under a resolved --moe-runner-backend."""
    get_flags().moe.runner_backend = MoeRunnerBackend(runner)
    layer = object.__new__(FusedMoE)
    build(
        *([] if build is FusedMoE.__init__ else [FusedMoE.__init__]),
        layer,
        num_experts=E,
        hidden_size=H,
        intermediate_size=INNER,
        layer_id=0,
        top_k=K,
        params_dtype=torch.bfloat16,
        quant_config=config,
        prefix="model.layers.0.mlp.experts",
    )
    return layer


def admitted(config: Any, format_: Format) -> str:
    """The runner under which Lynx's admission lets SGLang build the layers."""
    block = getattr(config, "weight_block_size", None)
    experts = Experts(
        count=E,
        is_fp4=getattr(config, "is_fp4_experts", False),
        quantization=None if config is None else config.get_name(),
        block=None if block is None else tuple(block),
    )
    covers = format_.asked == "auto" and experts.uncovered(format_.arch) is None
    runner = "triton" if covers else format_.asked
    if reason := widens(runner, experts):
        raise UnsupportedError(reason)
    return runner


@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)
def test_lynx_or_the_runner_that_sglang_would_have_chosen(
    format_: Format, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lynx_sglang")
    layers = ExpertLayers()
    with gpu(monkeypatch, format_.arch):
        plain = built(format_.make(), format_.asked)
        config = format_.make()
        if format_.name == "mxfp4":
            with pytest.raises(UnsupportedError, match="widens them to bfloat16"):
                admitted(config, format_)
            return
        layer = built(config, admitted(config, format_), around_init(layers.add))
        for each in (plain, layer):
            runner = each.runner_backend
            assert type(each.quant_method).__name__ == format_.method
            assert (None if runner is None else runner.value) == format_.runner
            assert type(each.scheme).__name__ == (format_.scheme or "NoneType")
        topk = TopK(K, layer_id=0)
        topk.is_fp4_experts = getattr(config, "is_fp4_experts", False)
        if format_.is_refused:
            with pytest.raises(UnsupportedError, match=f"the runner {format_.runner} routes"):
                bind_backend(
                    TopK.bind_runner_backend,
                    topk,
                    layer.runner_backend,
                    routing_method_type=RoutingMethodType.Renormalize,
                )
            return
        bind_backend(TopK.bind_runner_backend, topk, layer.runner_backend)
    path = DevicePath(Sizes([0], E, 0, K), floor=1, policy="lynx", device="cpu", max_rows=8)
    monkeypatch.setattr(fused_runner.Workspace, "allocate", lambda *_args, **_named: None)
    layers.allocate(path)
    assert path.fronted == (set() if format_.reason else {0})
    if format_.reason:
        by = format_.runner or "a kernel of its own"
        assert f"SGLang runs the experts of 1 layers with {by}: " in caplog.text
        assert format_.reason in caplog.text
    else:
        assert "lynx's kernels run the experts of 1 layers" in caplog.text


def test_experts_that_would_route_inside_are_refused_for_gpt_oss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The runner that SGLang chooses on Blackwell."""
    with gpu(monkeypatch, 100):
        layer = built(of("mxfp4", {"quant_method": "mxfp4"})(), "flashinfer_mxfp4")
        with pytest.raises(UnsupportedError, match="flashinfer_mxfp4 routes inside"):
            bind_backend(TopK.bind_runner_backend, TopK(K, layer_id=0), layer.runner_backend)


def methods() -> set[str]:
    """Classes of the wheel that choose the runner of a MoE layer, or inherit how."""
    bases: dict[str, set[str]] = {}
    found = set()
    for path in SRT.rglob("*.py"):
        text = path.read_text()
        if "FusedMoEMethod" not in text and "create_moe_runner" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ClassDef):
                continue
            bases.setdefault(node.name, set()).update(
                ast.unparse(base).rpartition(".")[2] for base in node.bases
            )
            if any(getattr(each, "name", "") == "create_moe_runner" for each in node.body):
                found.add(node.name)
    while more := {name for name, of_ in bases.items() if of_ & found} - found:
        found |= more
    return found


def test_every_class_of_the_wheel_is_classified() -> None:
    ours = {format_.method for format_ in FORMATS} | {format_.scheme for format_ in FORMATS}
    npu = {name for name in methods() if name.startswith(("NPU", "_NPU"))}
    known = (ours - {""}) | OTHER_HARDWARE | BASES | set(REFUSED) | set(AS_ITS_BASE) | npu
    assert sorted(methods() ^ known) == [], "build what is new, then put it in the table"


def test_what_is_refused_is_refused_by_name() -> None:
    flags = {feature.flag for feature in FEATURES if feature.cuda is not None}
    for by in REFUSED.values():
        assert by in flags or model_files.refusal([by]) is not None
