"""Every SGLang name that Lynx hooks, calls or reads, and the versions it was checked against.

This table is the whole surface between the two projects. Tests hold it against the source of each
supported SGLang and against Lynx's: each name exists with these parameters, each class has these
attributes, and none is missing. At start the plugin refuses a version that is not listed. An entry
that not all versions have says so: ``Name.versions``, ``LACKS``.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import pkgutil
from dataclasses import dataclass

SUPPORTED_VERSIONS = ("0.5.22", "0.5.23")  # the two newest releases

# Without expert parallelism, their Triton runner reads weights of an expert -1 for an empty slot.
NO_EMPTY_SLOTS = ("0.5.22",)


@dataclass(frozen=True, slots=True)
class Name:
    """One SGLang name, the parameters that Lynx relies on, and the versions that have it."""

    path: str
    parameters: tuple[str, ...] = ()
    use: str = ""
    versions: tuple[str, ...] = SUPPORTED_VERSIONS

    @property
    def hook_path(self) -> str:
        """The path as SGLang's hook registry writes it."""
        return self.path.replace(":", ".")

    def fault(self) -> str | None:
        """The difference between this entry and the installed SGLang; None if there is none."""
        try:
            target = pkgutil.resolve_name(self.path)
        except (ImportError, AttributeError) as error:
            return f"{self.path}: {error}"
        if not self.parameters:
            return None
        present = inspect.signature(target).parameters
        missing = [name for name in self.parameters if name not in present]
        return f"{self.path}: no parameter {', '.join(missing)}" if missing else None


# Public extension points.
ADD_MOE_CHOICES = Name(
    "sglang.srt.arg_groups.choices:add_moe_runner_backend_choices", use="accept --moe-backend lynx"
)
ADD_ATTENTION_CHOICES = Name(
    "sglang.srt.arg_groups.choices:add_attention_backend_choices",
    use="CPU platform: its attention by name",
)
RESOLUTION_HOOK = Name(
    "sglang.srt.arg_groups.resolution_hooks:register_resolution_hook", ("name",), "CPU defaults"
)
DECLARE_RESOLUTION = Name(
    "sglang.srt.arg_groups.overrides:declare_resolution", ("server_args", "source"), "CPU defaults"
)
RESOLVING_VIEW = Name(
    "sglang.srt.arg_groups.overrides:resolving_view", ("server_args",), "resolved arguments"
)
MODEL_CONFIG_OF = Name(
    "sglang.srt.arg_groups.overrides:model_config_of", ("server_args",), "the model's configuration"
)
REGISTER_CORE = Name(
    "sglang.srt.layers.moe.moe_runner.runner:register_moe_runner_core",
    ("backend_name", "factory"),
    "the MoE runner",
)
RESOLVE_BACKEND = Name(
    "sglang.srt.layers.moe.utils:resolve_moe_runner_backend", ("backend",), "the MoE runner"
)
MOE_RUNNER = Name(
    "sglang.srt.layers.moe.moe_runner.runner:MoeRunner", ("runner_backend", "config"), "the runner"
)
DISPATCH_CORE = Name(
    "sglang.srt.layers.moe.moe_runner.base:DispatchMoeRunnerCore.run_from_dispatch",
    ("dispatch_output", "quant_info", "runner_config", "hooks"),
    "base of the MoE runner",
)
OOT_FORWARD = Name(
    "sglang.kernels.fused_op:BaseFusedOp.register_oot_forward",
    ("op_cls", "fn", "platform_key"),
    "unquantised MoE, RMSNorm and rotary embedding on the CPU platform",
)
RMS_NORM = Name(
    "sglang.srt.layers.layernorm:RMSNorm.forward_native",
    ("x", "residual", "post_residual_addition", "quant_linear"),
    "CPU platform: replaced, and the fallback",
)
ROTARY = Name(
    "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding.forward_native",
    ("positions", "query", "key", "offsets", "fused_set_kv_buffer_arg"),
    "CPU platform: replaced, and the fallback",
)
FUSED_TOPK = Name(
    "sglang.srt.layers.moe.topk:fused_topk_torch_native",
    ("hidden_states", "gating_output", "topk", "renormalize", "correction_bias", "scoring_func"),
    "CPU platform: replaced as ``fused_topk_native``, and the fallback",
)
SERVER_ARGS = Name(
    "sglang.srt.runtime_context:get_server_args", use="GPU: the runner that the operator named"
)
UNQUANTIZED_METHOD = Name(
    "sglang.srt.layers.quantization.unquant:UnquantizedFusedMoEMethod",
    use="GPU: experts in the model's dtype",
)
FP8_METHOD = Name(
    "sglang.srt.layers.quantization.fp8:Fp8MoEMethod",
    use="GPU: fp8 experts, scales per block or expert",
)
CHANNEL_FP8_METHOD = Name(
    "sglang.srt.layers.quantization.w8a8_fp8:W8A8FP8MoEMethod",
    use="GPU: fp8 experts, scales per row",
)
MODELOPT_FP8_METHOD = Name(
    "sglang.srt.layers.quantization.modelopt_quant:ModelOptFp8MoEMethod",
    use="GPU: fp8 experts, scales per expert",
)
COMPRESSED_METHOD = Name(
    "sglang.srt.layers.quantization.compressed_tensors.compressed_tensors:"
    "CompressedTensorsFusedMoEMethod",
    use="GPU: its layers carry the scheme that builds the runner",
)
COMPRESSED_FP8_SCHEME = Name(
    "sglang.srt.layers.quantization.compressed_tensors.schemes:CompressedTensorsW8A8Fp8MoE",
    ("weight_quant", "input_quant"),
    "GPU: fp8 experts, scales per block, row or expert",
)
TRITON_FUSED = Name(
    "sglang.srt.layers.moe.moe_runner.triton:fused_experts_none_to_triton",
    ("dispatch_output", "quant_info", "runner_config"),
    "GPU: SGLang's function behind Lynx's kernels",
)
TRITON_QUANT_INFO = Name(
    "sglang.srt.layers.moe.moe_runner.triton:TritonMoeQuantInfo",
    (
        "w13_weight",
        "w2_weight",
        "b13",
        "b2",
        "w13_scale",
        "w2_scale",
        "per_channel_quant",
        "fuse_swiglu_interleaved",
    ),
    "a runner's weights",
)
RUNNER_CONFIG = Name(
    "sglang.srt.layers.moe.moe_runner.base:MoeRunnerConfig",
    (
        "layer_id",
        "num_experts",
        "num_local_experts",
        "num_fused_shared_experts",
        "params_dtype",
        "activation",
        "is_gated",
        "no_combine",
        "apply_router_weight_on_input",
        "routed_scaling_factor",
        "gemm1_alpha",
        "gemm1_beta",
        "gemm1_clamp_limit",
        "swiglu_limit",
        "gate_up_interleaved",
    ),
    "a layer's demands on its runner",
)
TOPK_FORMAT = Name(
    "sglang.srt.layers.moe.topk:TopKOutputFormat.STANDARD",
    use="GPU: the routing format that selection edits",
)
TOPK_CONFIG = Name(
    "sglang.srt.layers.moe.topk:TopKConfig",
    (
        "use_grouped_topk",
        "scoring_func",
        "custom_routing_function",
        "correction_bias",
        "fused_shared_experts_scaling_factor",
        "output_format",
    ),
    "a layer's router",
)
OUTPUT_STREAMER = Name(
    "sglang.srt.managers.scheduler_components.output_streamer:"
    "SchedulerOutputStreamer.build_additional_customized_info",
    ("reqs",),
    "per-request report in meta_info",
)
EXPERT_RECORDER = Name(
    "sglang.srt.eplb.expert_distribution:get_global_expert_distribution_recorder",
    use="shadow passes stay out of SGLang's expert statistics",
)
RECORDER_HOOK = Name(
    "sglang.srt.eplb.expert_distribution:_ExpertDistributionRecorderReal._on_hook",
    ("hook_name",),
    "CPU platform: asks CUDA about captures in a layer that it does not record",
)
SHARED_EXPERT_GATE = Name(
    "sglang.kernels.ops.elementwise.elementwise:_launch_fused_gate_sigmoid_mul",
    ("hidden_states", "gate_weight", "shared_output", "output", "do_add"),
    "CPU platform: replaced, it is a Triton kernel",
)
STATEFUL_LAYERS = Name(
    "sglang.srt.configs.hybrid_arch:mambaish_config",
    ("model_config",),
    "models that cannot run a step twice",
)
# Hooked functions (sglang.srt.plugins.hook_registry).
ADD_CLI_ARGS = Name("sglang.srt.server_args:ServerArgs.add_cli_args", ("parser",), "flags")
FROM_CLI_ARGS = Name("sglang.srt.server_args:ServerArgs.from_cli_args", ("args",), "flags")
ENGINE_ARGS = Name("sglang.srt.entrypoints.engine:Engine.server_args_class", use="Engine(lynx_...)")
ENGINE_LAUNCH = Name(
    "sglang.srt.entrypoints.engine:Engine._launch_subprocesses",
    ("server_args",),
    "a launch that fails leaves no settings in the environment",
)
ENGINE_SHUTDOWN = Name(
    "sglang.srt.entrypoints.engine:Engine.shutdown",
    ("self",),
    "an engine that ends leaves no settings in the environment",
)
CREATE_RUNNER = Name(
    "sglang.srt.layers.quantization.unquant:UnquantizedFusedMoEMethod.create_moe_runner",
    ("layer", "moe_runner_config"),
    "CPU: the quant method would choose TRITON",
)
FUSED_MOE = Name(
    "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE.__init__",
    ("layer_id", "num_experts", "top_k", "num_fused_shared_experts"),
    "GPU: the model's layers, and Lynx's kernels in front of their Triton runner",
)
TOPK_LAYER = Name(
    "sglang.srt.layers.moe.topk:TopK.__init__",
    ("top_k", "layer_id"),
    "experts per token, which some models do not tell FusedMoE",
)
BIND_BACKEND = Name(
    "sglang.srt.layers.moe.topk:TopK.bind_runner_backend",
    ("runner_backend",),
    "GPU: refuse runners that route inside their kernel",
    versions=("0.5.23",),
)
TOPK_FORWARD = Name(
    "sglang.srt.layers.moe.topk:TopK.forward_cuda",
    ("hidden_states", "router_logits"),
    "GPU: the same, where each call chooses the format",
    versions=("0.5.22",),
)
CAPTURE = Name(
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner.capture",
    ("self",),
    "GPU: decode graphs capture selection, after its buffers are allocated",
)
CAPTURE_PREFILL = Name(
    "sglang.srt.model_executor.runner.prefill_cuda_graph_runner:PrefillCudaGraphRunner.capture",
    ("self",),
    "GPU: with mixed chunks, prefill graphs capture selection, too",
)
PROCESS_RESULT = Name(
    "sglang.srt.managers.scheduler:Scheduler.process_batch_result",
    ("batch", "result"),
    "GPU: a step's end",
)
POST_PROCESS_TOPK = Name(
    "sglang.srt.layers.moe.topk:_post_process_topk_ids",
    (
        "topk_ids",
        "topk_weights",
        "topk_config",
        "router_logits",
        "layer_id",
        "num_token_non_padded",
        "expert_location_dispatch_info",
    ),
    "selection: after top-k, before pad masks, EPLB remap and capture",
)
RUN_EXPERTS = Name(
    "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE.run_moe_core",
    ("self", "dispatch_output"),
    "calibration: each expert's output",
)
RECEIVE = Name(
    "sglang.srt.managers.scheduler_components.request_receiver:"
    "SchedulerRequestReceiver.recv_requests",
    ("local_reqs",),
    "rank 0's orders travel with the requests of each loop",
)
NEXT_BATCH = Name(
    "sglang.srt.managers.scheduler:Scheduler.get_next_batch_to_run",
    ("running_batch", "last_batch"),
    "prediction of the next decode batch",
)
PARALLEL = Name(
    "sglang.srt.runtime_context:get_parallel", use="this process's rank and the number of ranks"
)
RUN_BATCH = Name(
    "sglang.srt.managers.scheduler:Scheduler.run_batch", ("batch",), "step begin and end"
)
FORWARD = Name(
    "sglang.srt.model_executor.model_runner:ModelRunner._forward_raw",
    ("forward_batch", "pp_proxy_tensors"),
    "shadow passes: inside SGLang's count of passes, before sampling",
)
STREAMER_CLASS = Name(
    "sglang.srt.managers.scheduler:Scheduler.get_output_streamer_class", ("self",), "meta_info"
)
GET_STATE = Name(
    "sglang.srt.managers.scheduler_components.internal_state:"
    "SchedulerInternalStateController.get_internal_state",
    ("recv_req",),
    "lynx in /server_info",
)
PAUSE = Name(
    "sglang.srt.managers.scheduler:Scheduler.pause_generation",
    ("recv_req",),
    "pauses do not count as step time",
)
CONTINUE = Name(
    "sglang.srt.managers.scheduler:Scheduler.continue_generation",
    ("recv_req",),
    "pauses do not count as step time",
)
IDLE = Name(
    "sglang.srt.managers.scheduler_components.metrics_reporter:"
    "SchedulerMetricsReporter.record_scheduler_idle",
    ("self",),
    "gauges of an idle server",
)
SET_STATE = Name(
    "sglang.srt.managers.scheduler_components.internal_state:"
    "SchedulerInternalStateController.set_internal_state",
    ("recv_req",),
    "/set_internal_state",
)
UPDATE_HANDLERS = Name(
    "sglang.srt.managers.scheduler_components.internal_state:"
    "SchedulerInternalStateController._update_handlers",
    ("self",),
    "/set_internal_state",
)
# Entry of requests.
START = Name(
    "sglang.srt.server_args:PortArgs.init_new", ("server_args",), "the launcher starts a server"
)
RESOLVE_LORA = Name(
    "sglang.srt.managers.tokenizer_manager:TokenizerManager._validate_and_resolve_lora",
    ("obj",),
    "a tier that is named like an adapter",
)
VERIFY_SAMPLING = Name(
    "sglang.srt.sampling.sampling_params:SamplingParams.verify",
    ("vocab_size",),
    "a wrong tier is answered with status 400",
)
UPDATE_META_INFO = Name(
    "sglang.srt.managers.tokenizer_manager:TokenizerManager.update_request_meta_info",
    ("meta_info", "state", "customized_info", "index"),
    "one report in meta_info",
)
HANDLE_ABORT = Name(
    "sglang.srt.managers.tokenizer_manager:TokenizerManager._handle_abort_req",
    ("recv_obj",),
    "a report for a request that was aborted in the queue",
)
CHANGE_STATE = Name(
    "sglang.srt.managers.tokenizer_control_mixin:TokenizerControlMixin.set_internal_state",
    ("obj",),
    "the reason of a refused change",
)

# Attributes of SGLang's objects that are read, set or called, by class.
SERVER_ARGUMENTS = "sglang.srt.server_args:ServerArgs"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    path: tuple(names.split())
    for path, names in {
        "sglang.srt.managers.scheduler_components.internal_state:"
        "SchedulerInternalStateController": "scheduler",
        SERVER_ARGUMENTS: (
            "attention_backend chunked_prefill_size device disable_overlap_schedule dp_size dtype "
            "enable_mixed_chunk enable_return_aux_hidden_states max_running_requests model_path "
            "moe_runner_backend pp_size prefill_decode_interval_min_bs quantization tp_size"
        ),
        "sglang.srt.entrypoints.engine:Engine": "server_args",
        "sglang.srt.eplb.expert_distribution:_ExpertDistributionRecorderReal": "recording",
        "sglang.srt.models.registry:_ModelRegistry": "is_arch_supported",
        "sglang.srt.configs.model_config:ModelConfig": "hf_config hf_text_config is_hybrid_swa",
        "sglang.srt.managers.scheduler:Scheduler": (
            "_prefill_decode_interval_remaining chunked_prefill_size chunked_req enable_overlap "
            "forward_ct forward_stream_ctx last_batch metrics_reporter model_config page_size "
            "prefill_decode_interval prefill_decode_interval_min_bs running_batch "
            "truncation_align_size waiting_queue"
        ),
        "sglang.srt.managers.schedule_batch:ScheduleBatch": (
            "after_idle_gap chunked_req decoding_reqs extend_lens forward_mode launch_ts "
            "prefix_lens reqs seq_lens seq_lens_cpu"
        ),
        "sglang.srt.managers.schedule_batch:Req": (
            "beam_group finished rid sampling_params time_stats"
        ),
        "sglang.srt.sampling.sampling_params:SamplingParams": "custom_params",
        "sglang.srt.observability.req_time_stats:SchedulerReqTimeStats": "wait_queue_entry_time",
        "sglang.srt.managers.tokenizer_manager:TokenizerManager": (
            "enable_lora get_internal_state lora_ref_cache rid_to_state"
        ),
        "sglang.srt.managers.tokenizer_manager:ReqState": "obj out_list output_ids",
        "sglang.srt.managers.io_struct:GenerateReqInput": "lora_path sampling_params",
        "sglang.srt.managers.io_struct:AbortReq": "rid",
        "sglang.srt.managers.io_struct:SetInternalStateReq": "server_args",
        "sglang.srt.managers.io_struct:SetInternalStateReqOutput": "updated",
        "sglang.srt.managers.io_struct:GetInternalStateReqOutput": "internal_state",
        "sglang.srt.managers.scheduler_components.metrics_reporter:SchedulerMetricsReporter": (
            "enable_metrics metrics_collector"
        ),
        "sglang.srt.observability.metrics_collector:SchedulerMetricsCollector": "labels",
        "sglang.srt.model_executor.forward_batch_info:ForwardMode": (
            "is_decode is_extend is_idle is_mixed is_prebuilt is_target_verify"
        ),
        "sglang.srt.model_executor.forward_batch_info:ForwardBatch": (
            "forward_mode out_cache_loc req_pool_indices seq_lens"
        ),
        "sglang.srt.model_executor.model_runner:ModelRunnerOutput": "logits_output",
        "sglang.srt.layers.logits_processor:LogitsProcessorOutput": "next_token_logits",
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner": (
            "capture_bs"
        ),
        "sglang.srt.model_executor.runner.prefill_cuda_graph_runner:PrefillCudaGraphRunner": (
            "capture_num_tokens"
        ),
        "sglang.srt.layers.layernorm:RMSNorm": (
            "override_orig_dtype variance_epsilon variance_size_override weight"
        ),
        "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding": (
            "cos_sin_cache head_size is_neox_style rotary_dim"
        ),
        "sglang.srt.layers.radix_attention:RadixAttention": (
            "is_cross_attention layer_id qk_head_dim scaling sliding_window_size tp_k_head_num "
            "tp_q_head_num v_head_dim"
        ),
        "sglang.srt.layers.moe.utils:MoeRunnerBackend": "is_triton",
        "sglang.srt.layers.moe.topk:TopK": "layer_id topk_config",
        "sglang.srt.layers.moe.topk:StandardTopKOutput": "format topk_ids topk_weights",
        "sglang.srt.layers.moe.token_dispatcher.standard:StandardDispatchOutput": (
            "hidden_states topk_output"
        ),
        "sglang.srt.layers.moe.moe_runner.base:MoeRunnerConfig": "intermediate_size_per_partition",
        "sglang.srt.layers.moe.moe_runner.runner:MoeRunner": "fused_func run runner_backend",
        "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE": (
            "dispatcher layer_id moe_ep_rank moe_ep_size moe_runner_config quant_method "
            "runner_backend"
        ),
        "sglang.srt.layers.moe.token_dispatcher.standard:StandardDispatcher": (
            "dispatch skip_local_expert_mapping"
        ),
        "sglang.srt.layers.quantization.fp8:Fp8MoEMethod": (
            "is_fp4_expert runner use_mxfp8 weight_block_size"
        ),
        "sglang.srt.layers.quantization.compressed_tensors.compressed_tensors:"
        "CompressedTensorsConfig": "scheme",  # which it sets on a layer
        "sglang.srt.layers.quantization.w8a8_fp8:W8A8FP8MoEMethod": "runner",
        "sglang.srt.layers.quantization.modelopt_quant:ModelOptFp8MoEMethod": "runner",
        "sglang.srt.layers.quantization.compressed_tensors.schemes:CompressedTensorsW8A8Fp8MoE": (
            "runner weight_block_size"
        ),
    }.items()
}

# Attributes that a version lacks; they are read with a default.
LACKS: dict[str, dict[str, tuple[str, ...]]] = {
    "0.5.22": {
        SERVER_ARGUMENTS: (
            "enable_amd_monokernel",
            "enable_nvidia_megakernel",
            "enable_paged_experts",
            "enable_return_aux_hidden_states",
            "prefill_decode_interval_min_bs",
        ),
        "sglang.srt.managers.scheduler:Scheduler": ("prefill_decode_interval_min_bs",),
        "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE": ("runner_backend",),
    }
}

NATIVE_ATTENTION = Name(
    "sglang.srt.layers.attention.torch_native_backend:TorchNativeAttnBackend",
    use="base of the CPU platform's attention, and its prefill",
)
KV_WRITE = Name("sglang.srt.mem_cache.memory_pool:KVWriteLoc", use="KV slots that decode writes")
ATTENTION_TABLE = Name(
    "sglang.srt.layers.attention.attention_registry:ATTENTION_BACKENDS",
    use="CPU platform: registered attention backends",
)
REGISTER_ATTENTION = Name(
    "sglang.srt.layers.attention.attention_registry:register_attention_backend",
    use="the CPU platform's attention",
)
PLATFORM = Name("sglang.srt.platforms.interface:SRTPlatform", use="base of the CPU platform")
PLATFORM_CAPABILITIES = Name(
    "sglang.srt.platforms.interface:PlatformCapabilities", use="capabilities of the CPU platform"
)
PLATFORM_ENUM = Name(
    "sglang.srt.platforms.device_mixin:PlatformEnum", use="the CPU platform's kind"
)
SYMMETRIC_MEMORY = Name(
    "sglang.srt.distributed.device_communicators.pynccl_allocator:use_symmetric_memory",
    ("group_coordinator", "disabled"),
    "where a layer's output is allocated",
)
IS_SYMMETRIC = Name(
    "sglang.srt.layers.dp_attention:is_allocation_symmetric",
    use="where a layer's output is allocated",
)
COMBINE_INPUT = Name(
    "sglang.srt.layers.moe.token_dispatcher:StandardCombineInput", use="a runner's result"
)
TIMING_INTERVAL = Name(
    "sglang.srt.utils.device_timer:_TimingInterval",
    ("start_event",),
    "CPU platform: replaced, there is no device to record events on",
)
HOOK_REGISTRY = Name("sglang.srt.plugins.hook_registry:HookRegistry", use="every hook")
APPLY_HOOKS = Name(
    "sglang.srt.plugins.hook_registry:HookRegistry.apply_hooks",
    use="where hooks are proven to be in place",
)
HOOK_TABLE = Name(
    "sglang.srt.plugins.hook_registry:HookRegistry._hooks", use="which hooks are registered"
)
FREE_MEMORY = Name(
    "sglang.srt.utils.common:get_free_cpu_memory",
    use="replaced on the CPU platform: the growth of other processes is not ours",
    versions=("0.5.23",),
)
LOAD_PLUGINS = Name("sglang.srt.plugins:load_plugins", use="lynx-sglang check")
PREPARE_ARGS = Name(
    "sglang.srt.server_args:prepare_server_args", ("argv",), "lynx-sglang check of a launch line"
)
ARGUMENT_GROUPS = Name("sglang.srt:arg_groups", use="lynx-sglang check --gpu: imported before")
QUANTIZATION_METHODS = Name(
    "sglang.srt.layers.quantization:QUANTIZATION_METHODS", use="lynx-sglang check --gpu"
)
MXFP4_CONFIG = Name(
    "sglang.srt.layers.quantization.mxfp4:Mxfp4Config", use="lynx-sglang check --gpu"
)
OVERRIDE_PLATFORM = Name(
    "sglang.srt.runtime_context:override_platform",
    use="lynx-sglang check --gpu: facts of a GPU that is not there",
)
MODEL_REGISTRY = Name(
    "sglang.srt.models.registry:ModelRegistry",
    use="whether an external package brings a model's code",
)
HOOK_TYPE = Name("sglang.srt.plugins.hook_registry:HookType", use="every hook")
SCHEDULER_PROCESS = Name(
    "sglang.srt.managers.scheduler:run_scheduler_process", use="calibration's scheduler"
)
STATE_CHANGED = Name(
    "sglang.srt.managers.io_struct:SetInternalStateReqOutput", use="a refused change of a setting"
)
UPDATE_HANDLER = Name(
    "sglang.srt.managers.scheduler_components.internal_state:_UpdateHandler",
    use="a setting that changes at run time",
)

NAMES: tuple[Name, ...] = tuple(value for value in list(globals().values()) if type(value) is Name)


def names_of(version: str) -> tuple[Name, ...]:
    """The names that a version must have; for an unknown one, those of the newest that is known."""
    known = version if version in SUPPORTED_VERSIONS else SUPPORTED_VERSIONS[-1]
    return tuple(name for name in NAMES if known in name.versions)


def sglang_version() -> str:
    return importlib.metadata.version("sglang")


def is_supported() -> bool:
    """Whether the installed SGLang is one that this table was checked against."""
    return sglang_version() in SUPPORTED_VERSIONS


def takes_empty_slots_for_experts() -> bool:
    """Whether runners of the installed SGLang read id -1 as an expert's."""
    return sglang_version() in NO_EMPTY_SLOTS
