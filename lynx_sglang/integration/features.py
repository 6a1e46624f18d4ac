"""SGLang features beside Lynx: served or refused, why, and what to do instead.

One table. Refusals at start, ``lynx-sglang check`` and the documentation's support table are made
from it. It is read from *resolved* arguments: SGLang turns some flags into others first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that an operator may ask SGLang for.

    ``field`` is the name in ``ServerArgs``; ``flag`` and ``also`` are the operator's words for it.
    ``cuda`` and ``cpu`` are the reasons why it is refused there; None where it is served.
    """

    name: str
    flag: str
    field: str
    is_asked: Callable[[Any], bool]
    cuda: str | None
    cpu: str | None
    remedy: str = "Remove it."
    also: tuple[str, ...] = ()

    def reason_on(self, device: Device) -> str | None:
        return self.cuda if device == "cuda" else self.cpu

    def refusal(self, args: Any, device: Device) -> str | None:
        """One line that names flag, reason and remedy; None where this feature is no obstacle."""
        # None where this version of SGLang lacks the argument (``sglang_names.LACKS``).
        value, reason = getattr(args, self.field, None), self.reason_on(device)
        if reason is None or not self.is_asked(value):
            return None
        given = self.flag if isinstance(value, bool) else f"{self.flag} {written(value)}"
        others = f" (or {', '.join(self.also)})" if self.also else ""
        where = " on a CPU" if device == "cpu" and self.cuda is None else ""
        where = " on a GPU" if device == "cuda" and self.cpu is None else where
        return f"{given}{others} is not served{where}: {reason}. {self.remedy}"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the support table; a reason is None where the feature is served."""

    name: str
    flags: tuple[str, ...]
    cuda: str | None
    cpu: str | None
    remedy: str


def written(value: Any) -> str:
    """A value as an operator would write it on one line."""
    if isinstance(value, list | tuple | set):
        return " ".join(str(item) for item in value)
    return str(value)


def above_one(value: Any) -> bool:
    return value is not None and int(value) > 1


def other_than(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: value not in allowed


def one_of(*refused: Any) -> Callable[[Any], bool]:
    return lambda value: value in refused


def above_zero(value: Any) -> bool:
    return value is not None and float(value) > 0


OTHER_ROWS = "each rank would select for rows of its own, without the others'"
OTHER_LAYERS = "each stage would decide for its own layers alone"
PLACES = "experts keep their places and ids"
PAGED = "experts that are not in memory cannot be scheduled"
NOT_DECODE = "its steps are not decode steps, and no other step is selected"
NO_CPU_FORM = "SGLang has no form of it for this CPU platform"
BATCH_BOUND = "a token's experts depend on the batch that it shares them with"
MEGAKERNEL = "its kernels run the whole layer, routing included"


def both(
    name: str,
    flag: str,
    field: str,
    reason: str,
    is_asked: Callable[[Any], bool] = bool,
    remedy: str = "Remove it.",
    also: tuple[str, ...] = (),
) -> Feature:
    """A feature that is refused on every device for the same reason."""
    return Feature(name, flag, field, is_asked, reason, reason, remedy, also)


FEATURES: tuple[Feature, ...] = (
    # Parallelism over ranks. Tensor and expert parallelism route the same rows on all.
    Feature("Tensor parallelism", "--tp-size", "tp_size", above_one, None, None),
    Feature("Expert parallelism", "--ep-size", "ep_size", above_one, None, None),
    both(
        "Attention data parallelism", "--attn-dp-size", "attn_dp_size", OTHER_ROWS, above_one,
        also=("--dp-size with --enable-dp-attention",),
    ),
    Feature("Replicas", "--dp-size", "dp_size", above_one, None, None),
    both("Pipeline parallelism", "--pp-size", "pp_size", OTHER_LAYERS, above_one),
    both(
        "Attention context parallelism", "--attn-cp-size", "attn_cp_size", OTHER_ROWS, above_one
    ),
    both("Prefill context parallelism", "--enable-prefill-cp", "enable_prefill_cp", OTHER_ROWS),
    both("Decode context parallelism", "--dcp-size", "dcp_size", OTHER_ROWS, above_one),
    both("MoE data parallelism", "--moe-dp-size", "moe_dp_size", OTHER_ROWS, above_one),
    both(
        "Distributed weight data parallelism", "--dwdp-size", "dwdp_size",
        "experts are fetched from other ranks while a step runs", above_one,
    ),
    both(
        "Input-scattered attention", "--enable-attn-tp-input-scattered",
        "enable_attn_tp_input_scattered", OTHER_ROWS,
    ),
    both(
        "LayerNorm sequence parallelism", "--enable-layernorm-sp", "enable_layernorm_sp", OTHER_ROWS
    ),
    both(
        "Expert all-to-all", "--moe-a2a-backend", "moe_a2a_backend", OTHER_ROWS,
        other_than(None, "none"),
    ),
    both(
        "Ray actors", "--use-ray", "use_ray",
        "its processes do not inherit Lynx's settings",
    ),
    # Placement of experts.
    both("Expert load balancing (EPLB)", "--enable-eplb", "enable_eplb", PLACES),
    both(
        "Redundant experts", "--ep-num-redundant-experts", "ep_num_redundant_experts", PLACES,
        above_zero,
    ),
    both(
        "Expert dispatch algorithm", "--ep-dispatch-algorithm", "ep_dispatch_algorithm", PLACES
    ),
    both(
        "Expert placement", "--init-expert-location", "init_expert_location", PLACES,
        other_than(None, "trivial"),
    ),
    both("Elastic expert parallelism", "--elastic-ep-backend", "elastic_ep_backend", PLACES),
    both("Joining an elastic group", "--elastic-ep-join-mode", "ep_join_mode", PLACES),
    both("Room for an elastic group", "--max-ep-size", "max_ep_size", PLACES, above_one),
    both(
        "Elastic expert backup", "--enable-elastic-expert-backup", "enable_elastic_expert_backup",
        PLACES,
    ),
    both(
        "Waterfill", "--enable-waterfill", "enable_waterfill",
        "it rewrites the routing after selection",
    ),
    both("Paged experts", "--enable-paged-experts", "enable_paged_experts", PAGED),
    both(
        "Expert packs", "--load-format", "load_format", PAGED, one_of("expert_pack"),
        "Load the model in its own format.",
    ),
    both("KTransformers", "--kt-weight-path", "kt_weight_path", PAGED),
    both("CPU offload", "--cpu-offload-gb", "cpu_offload_gb", PAGED, above_zero),
    both(
        "Layer offload", "--offload-group-size", "offload_group_size", PAGED, above_zero
    ),
    # Extra work in a step.
    both(
        "Other model implementations", "--model-impl", "model_impl",
        "only SGLang's own model code was read and tried", one_of("transformers", "mindspore"),
    ),
    both(
        "LoRA", "--enable-lora", "enable_lora",
        "adapters may change the experts that Lynx's kernels read", also=("--lora-paths",),
    ),
    both(
        "LoRA adapters", "--lora-paths", "lora_paths",
        "adapters may change the experts that Lynx's kernels read",
    ),
    both(
        "Speculative decoding", "--speculative-algorithm", "speculative_algorithm",
        "verify steps are not selected yet",
    ),
    both(
        "Decoupled speculation", "--decoupled-spec-role", "decoupled_spec_role",
        "verify steps are not selected yet", other_than(None, "null"),
    ),
    both("Diffusion language models", "--dllm-algorithm", "dllm_algorithm", NOT_DECODE),
    both("Embedding models", "--is-embedding", "is_embedding", NOT_DECODE),
    both(
        "Encoder servers", "--encoder-only", "encoder_only",
        "no language model runs in them",
    ),
    both(
        "Deterministic inference", "--enable-deterministic-inference",
        "enable_deterministic_inference", BATCH_BOUND, also=("--rl-on-policy-target",),
    ),
    both(
        "Prefill-decode disaggregation", "--disaggregation-mode", "disaggregation_mode",
        "the hand-over between its servers was not tried with Lynx", other_than(None, "null"),
    ),
    both(
        "Prefill-decode multiplexing", "--enable-pdmux", "enable_pdmux",
        "prefill and decode would run at the same time",
    ),
    both(
        "Two-batch overlap", "--enable-two-batch-overlap", "enable_two_batch_overlap",
        "both halves of a batch would write the same buffers",
    ),
    both(
        "Single-batch overlap", "--enable-single-batch-overlap", "enable_single_batch_overlap",
        "a layer's parts would run beside each other",
    ),
    both(
        "torch.compile", "--enable-torch-compile", "enable_torch_compile",
        "selection is a call that a compiled graph would leave out",
    ),
    both("NVIDIA megakernel", "--enable-nvidia-megakernel", "enable_nvidia_megakernel", MEGAKERNEL),
    both("AMD monokernel", "--enable-amd-monokernel", "enable_amd_monokernel", MEGAKERNEL),
    Feature(
        "Routed experts in answers", "--enable-return-routed-experts",
        "enable_return_routed_experts", bool,
        None, "SGLang registers its buffer with CUDA, with and without Lynx",
    ),
    Feature(
        "Expert distribution recorder", "--expert-distribution-recorder-mode",
        "expert_distribution_recorder_mode", other_than(None), None, None,
    ),
    Feature(
        "Mixed prefill and decode batches", "--enable-mixed-chunk", "enable_mixed_chunk", bool,
        None, None,
    ),
    Feature(
        "ModelOpt quantization at start", "--modelopt-quant", "modelopt_quant", bool,
        None, NO_CPU_FORM,
    ),
)  # fmt: skip

SHADOWS = "shadow passes (--lynx-shadow-share, --lynx-max-quality-loss)"
# Served, but not beside shadow passes: the forward of a shadowed step runs twice, inside what
# SGLang counts as one. The rest of a forward may run again: the served pass is the last to write
# the step's KV slots, its routed experts (--enable-return-routed-experts) and its logits.
COUNTED_TWICE: tuple[Feature, ...] = (
    Feature(
        "Expert distribution recorder", "--expert-distribution-recorder-mode",
        "expert_distribution_recorder_mode", other_than(None),
        "captured graphs count the experts of both passes", None,
    ),
    both(
        "KV canary", "--kv-canary", "kv_canary", "it takes a second pass for a fault",
        other_than(None, "none"),
    ),
    both(
        "Tensor dumps", "--debug-tensor-dump-output-folder", "debug_tensor_dump_output_folder",
        "it numbers passes, and a shadowed step has two", other_than(None),
    ),
)  # fmt: skip


def fields() -> list[str]:
    """The arguments of SGLang that are read."""
    return [feature.field for feature in (*FEATURES, *COUNTED_TWICE)]


def refusals(args: Any, device: Device) -> Iterator[str]:
    """The reasons to refuse a server with these resolved arguments, a line for each."""
    for feature in FEATURES:
        if (line := feature.refusal(args, device)) is not None:
            yield line


def shadow_refusals(args: Any, device: Device) -> Iterator[str]:
    """The reasons to refuse shadow passes on a server with these resolved arguments."""
    for feature in COUNTED_TWICE:
        if (line := feature.refusal(args, device)) is not None:
            yield f"beside {SHADOWS}, {line}"


def rows() -> tuple[Row, ...]:
    """The support table, in the order in which it reads best."""
    return tuple(
        Row(each.name, (each.flag, *each.also), each.cuda, each.cpu, each.remedy)
        for each in FEATURES
    )
