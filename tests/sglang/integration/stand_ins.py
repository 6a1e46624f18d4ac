"""Stand-ins for published models: a local folder with the config.json of the model's family.

Sizes are plausible, not the published ones; SGLang's resolution reads architecture, type,
experts, quantization and attention from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 1024, "intermediate_size": 4096,
    "moe_intermediate_size": 512, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "bfloat16", "eos_token_id": 1,
    "bos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
MLA: dict[str, Any] = {
    "q_lora_rank": 512, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "num_nextn_predict_layers": 1, "num_key_value_heads": 32,
    "head_dim": 192,
}  # fmt: skip
QWEN_MOE: dict[str, Any] = {
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}  # fmt: skip
HYBRID: dict[str, Any] = {
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
    "partial_rotary_factor": 0.25, "shared_expert_intermediate_size": 512,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 256, "num_heads": 4, "patch_size": 16, "intermediate_size": 512,
    "out_hidden_size": 2048,
}  # fmt: skip


def wrapped(architecture: str, kind: str, text_kind: str, text: dict[str, Any]) -> dict[str, Any]:
    """A model of text and images: the language model's configuration is inside."""
    return {
        "architectures": [architecture], "model_type": kind, "torch_dtype": "bfloat16",
        "text_config": {**COMMON, "model_type": text_kind, **text}, "vision_config": VISION,
        "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7,
        "vision_end_token_id": 8,
    }  # fmt: skip


def plain(architecture: str, kind: str, **more: Any) -> dict[str, Any]:
    return {**COMMON, "architectures": [architecture], "model_type": kind, **more}


DEEPSEEK_V3 = plain("DeepseekV3ForCausalLM", "deepseek_v3", **MLA)
DEEPSEEK_V32 = plain(
    "DeepseekV32ForCausalLM", "deepseek_v32", **MLA,
    index_topk=2048, index_n_heads=64, index_head_dim=128,
)  # fmt: skip
# A model whose configuration comes with code of its own.
REMOTE: dict[str, Any] = {
    "model_type": "interns1", "torch_dtype": "bfloat16", "vision_config": VISION,
    "auto_map": {"AutoConfig": "configuration.StandInConfig"},
}  # fmt: skip
REMOTE_CODE = """
from transformers import CONFIG_MAPPING, PretrainedConfig


class StandInConfig(PretrainedConfig):
    model_type = "interns1"

    def __init__(self, text_config=None, vision_config=None, **more):
        text = dict(text_config or {"model_type": "qwen3"})
        self.text_config = CONFIG_MAPPING[text["model_type"]](**text)
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        super().__init__(**more)
"""
# By a part of the model's name, the first that fits.
FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("MiniMax-M2", plain(
        "MiniMaxM2ForCausalLM", "minimax_m2", num_local_experts=256, num_experts_per_tok=8,
        scoring_func="sigmoid", use_routing_bias=True, rotary_dim=64, num_mtp_modules=0,
    )),
    ("Qwen3-Next", plain("Qwen3NextForCausalLM", "qwen3_next", **{**QWEN_MOE, **HYBRID})),
    ("Qwen3-Coder-Next", plain("Qwen3NextForCausalLM", "qwen3_next", **{**QWEN_MOE, **HYBRID})),
    ("Qwen3.5", wrapped(
        "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", "qwen3_5_moe_text",
        {**QWEN_MOE, **HYBRID},
    )),
    ("Qwen3.6", wrapped(
        "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", "qwen3_5_moe_text",
        {**QWEN_MOE, **HYBRID},
    )),
    ("Qwen3-VL-235B", wrapped(
        "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", "qwen3_vl_moe_text", QWEN_MOE
    )),
    ("Qwen3-VL-30B", wrapped(
        "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", "qwen3_vl_moe_text", QWEN_MOE
    )),
    ("Qwen3-VL", wrapped("Qwen3VLForConditionalGeneration", "qwen3_vl", "qwen3_vl_text", {})),
    ("Qwen3-235B", plain("Qwen3MoeForCausalLM", "qwen3_moe", **QWEN_MOE)),
    ("Qwen3-30B", plain("Qwen3MoeForCausalLM", "qwen3_moe", **QWEN_MOE)),
    ("Qwen3-", plain("Qwen3ForCausalLM", "qwen3")),
    ("DeepSeek-R1", DEEPSEEK_V3),
    ("DeepSeek-V3.2", DEEPSEEK_V32),
    ("DeepSeek-Math-V2", DEEPSEEK_V32),
    ("Kimi-K2.", {
        "architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25",
        "torch_dtype": "bfloat16", "text_config": DEEPSEEK_V3, "vision_config": VISION,
    }),
    ("Kimi-K2", plain("DeepseekV3ForCausalLM", "deepseek_v3", **{**MLA, "n_group": 1,
        "topk_group": 1, "n_routed_experts": 384})),
    ("Nemotron-3", plain(
        "NemotronHForCausalLM", "nemotron_h", hybrid_override_pattern="MEM*", n_routed_experts=128,
        num_experts_per_tok=6, n_shared_experts=1, n_group=1, topk_group=1, norm_topk_prob=True,
        routed_scaling_factor=2.5, moe_shared_expert_intermediate_size=512, mamba_num_heads=64,
        mamba_head_dim=64, ssm_state_size=128, n_groups=8, conv_kernel=4, expand=2,
        mlp_hidden_act="relu2", chunk_size=128,
    )),
    ("GLM-4.6V-Flash", wrapped("Glm4vForConditionalGeneration", "glm4v", "glm4v_text", {})),
    ("GLM-4.6V", wrapped(
        "Glm4vMoeForConditionalGeneration", "glm4v_moe", "glm4v_moe_text",
        {"n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 1,
         "topk_group": 1, "first_k_dense_replace": 1, "norm_topk_prob": True},
    )),
    ("GLM-4.6", plain(
        "Glm4MoeForCausalLM", "glm4_moe", n_routed_experts=160, n_shared_experts=1,
        num_experts_per_tok=8, n_group=1, topk_group=1, first_k_dense_replace=1,
        norm_topk_prob=True, routed_scaling_factor=2.5, partial_rotary_factor=0.5,
    )),
    ("GLM-5", plain(
        "GlmMoeDsaForCausalLM", "glm_moe_dsa", **MLA, index_topk=2048, index_n_heads=32,
        index_head_dim=128,
    )),
    ("Mistral-Small-4", plain("DeepseekV3ForCausalLM", "deepseek_v3", **{**MLA, "n_group": 1,
        "topk_group": 1, "n_routed_experts": 128})),
    ("Ring-2.5", plain(
        "BailingMoeV2_5ForCausalLM", "bailing_hybrid", **{**MLA, "num_experts": 256},
        num_shared_experts=1, layer_group_size=4, moe_shared_expert_intermediate_size=512,
        group_norm_size=4, linear_silu=False, moe_router_enable_expert_bias=True,
        score_function="sigmoid", use_qk_norm=True, partial_rotary_factor=0.5,
    )),
    ("gpt-oss", plain(
        "GptOssForCausalLM", "gpt_oss", num_local_experts=32, num_experts_per_tok=4,
        sliding_window=128, layer_types=["sliding_attention", "full_attention"] * 2,
        swiglu_limit=7.0, head_dim=64,
    )),
    ("Llama-4", {
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
        "torch_dtype": "bfloat16", "vision_config": {"model_type": "llama4_vision_model"},
        "text_config": {
            **COMMON, "max_position_embeddings": 1048576, "model_type": "llama4_text",
            "num_local_experts": 16,
            "num_experts_per_tok": 1, "intermediate_size_mlp": 4096,
            "interleave_moe_layer_step": 1, "attention_chunk_size": 8192,
        },
    }),
    ("Step-3.5", plain(
        "Step3p5ForCausalLM", "step3p5", moe_num_experts=288, moe_top_k=8, num_attention_groups=8,
        share_expert_dim=512, moe_layers_enum="1,2,3", sliding_window=512,
        layer_types=["full_attention", "sliding_attention"] * 2, moe_router_activation="sigmoid",
        use_moe_router_bias=True, moe_router_scaling_factor=3.0,
    )),
    ("MiMo-V2", plain(
        "MiMoV2FlashForCausalLM", "mimo_v2_flash", n_routed_experts=256, num_experts_per_tok=8,
        n_group=1, topk_group=1, scoring_func="sigmoid", topk_method="noaux_tc",
        norm_topk_prob=True, hybrid_layer_pattern=[0, 1, 1, 1], moe_layer_freq=[0, 1, 1, 1],
        sliding_window=128, sliding_window_size=128, swa_num_attention_heads=32,
        swa_num_key_value_heads=8, swa_head_dim=128, swa_v_head_dim=128, v_head_dim=128,
        swa_rope_theta=10000.0, layernorm_epsilon=1e-5,
    )),
    ("Intern-S1-mini", {
        "architectures": ["InternS1ForConditionalGeneration"], **REMOTE, "text_config": {
            **COMMON, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        },
    }),
    ("Intern-S1", {
        "architectures": ["InternS1ForConditionalGeneration"], **REMOTE, "text_config": {
            **COMMON, **QWEN_MOE, "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
        },
    }),
    ("Mixtral", plain(
        "MixtralForCausalLM", "mixtral", num_local_experts=8, num_experts_per_tok=2,
        sliding_window=None,
    )),
)  # fmt: skip

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "fp8": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": None},
    "mxfp4": {"quant_method": "mxfp4"},
    "int4": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32,
            "symmetric": True,
        }}},
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True,
            "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False,
             "sym": True},
}  # fmt: skip
QUANTIZATIONS["fp4"] = QUANTIZATIONS["nvfp4"]


def stand_in(model: str, quantization: str, folder: Path) -> Path:
    """Write the configuration of a model's family; the folder to give as --model-path."""
    config = next(config for part, config in FAMILIES if part in model)
    declared = QUANTIZATIONS.get(quantization)
    if declared is not None:
        config = {**config, "quantization_config": declared}
    # No name of the publisher's in the path: SGLang knows some models by it.
    family = next(at for at, (part, _) in enumerate(FAMILIES) if part in model)
    target = folder / f"{family}-{quantization}"
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    if "auto_map" in config:
        (target / "configuration.py").write_text(REMOTE_CODE)
    return target
