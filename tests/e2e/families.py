"""Tiny configurations of SGLang's MoE model families, one for each of its model classes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKENIZER = Path(__file__).parents[2] / "models" / "lynx-moe-tiny"
VOCABULARY = 640
EXPERTS = 16
PER_TOKEN = 4
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_experts_per_tok": PER_TOKEN,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# For model types that Transformers lacks: as the checkpoints of such models bring their own.
OWN_CONFIGURATION = """from transformers import PretrainedConfig


class Configuration(PretrainedConfig):
    model_type = "{model_type}"
"""


@dataclass(frozen=True, slots=True)
class Family:
    """A model class and what its configuration needs beside ``SIZES``."""

    architecture: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    is_own_type: bool = False  # Transformers lacks ``model_type``
    dtype: str = "float32"
    error: str = ""  # plain SGLang's, where it does not serve the family on this CPU
    is_in_ci: bool = False  # the cheapest of those that route alike

    @property
    def experts_per_token(self) -> int:
        return int(self.config.get("num_experts_per_tok", PER_TOKEN))


LOCAL = {"num_local_experts": EXPERTS}
PLAIN = {"num_experts": EXPERTS}
# DeepSeek-V3's router.
GROUPED = {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
MLA = {
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "moe_layer_freq": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4,
    "rope_scaling": {
        "rope_type": "deepseek_yarn", "type": "yarn", "factor": 1.0, "beta_fast": 32,
        "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 1024,
    },
}  # fmt: skip
FULL = ["full_attention"] * 3
WINDOWED = ["full_attention", "sliding_attention", "full_attention"]
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

FAMILIES = (
    Family("Qwen2MoeForCausalLM", "qwen2_moe", {
        **PLAIN, "norm_topk_prob": False, "shared_expert_intermediate_size": 32,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "sliding_window": None,
    }, is_in_ci=True),
    Family("Qwen3MoeForCausalLM", "qwen3_moe", {
        **PLAIN, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }),
    Family("MixtralForCausalLM", "mixtral", {**LOCAL, "sliding_window": None}),
    Family("OlmoeForCausalLM", "olmoe", {
        **PLAIN, "norm_topk_prob": False, "clip_qkv": None, "num_key_value_heads": 4,
    }, is_in_ci=True),
    Family("DeepseekV2ForCausalLM", "deepseek_v2", {
        **MLA, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "norm_topk_prob": False, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
    }, error="Expected size for first two dimensions of batch2 tensor"),
    Family("DeepseekV3ForCausalLM", "deepseek_v3", {
        **MLA, **GROUPED, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    }, error="Expected size for first two dimensions of batch2 tensor"),
    Family("Glm4MoeForCausalLM", "glm4_moe", {
        **GROUPED, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "partial_rotary_factor": 0.5, "use_qk_norm": True, "attention_bias": True,
    }, is_in_ci=True),
    Family("BailingMoeForCausalLM", "bailing_moe", {
        **PLAIN, "num_shared_experts": 1, "norm_topk_prob": True, "first_k_dense_replace": 1,
        "use_bias": False, "use_qkv_bias": False, "norm_head": False, "embedding_dropout": 0.0,
        **ROPE,
    }, True),
    Family("BailingMoeV2ForCausalLM", "bailing_moe_v2", {
        **PLAIN, **GROUPED, "num_shared_experts": 1, "first_k_dense_replace": 1, "use_bias": False,
        "use_qkv_bias": False, "norm_head": False, "embedding_dropout": 0.0, "use_qk_norm": True,
        "moe_router_enable_expert_bias": True, "score_function": "sigmoid", **ROPE,
        "partial_rotary_factor": 0.5, "num_nextn_predict_layers": 0, "rotary_dim": 8,
        "moe_shared_expert_intermediate_size": 32,
    }, True),
    Family("GraniteMoeForCausalLM", "granitemoe", {
        **LOCAL, "attention_multiplier": 0.25, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
    }),
    Family("GraniteMoeSharedForCausalLM", "granitemoeshared", {
        **LOCAL, "attention_multiplier": 0.25, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
        "residual_multiplier": 1.0, "shared_intermediate_size": 32,
    }),
    Family("PhiMoEForCausalLM", "phimoe", {
        **LOCAL, "num_experts_per_tok": 2, "sliding_window": None, "attention_bias": True,
        "lm_head_bias": True,
    }, is_in_ci=True),
    Family("MiniMaxM2ForCausalLM", "minimax_m2", {
        **LOCAL, "scoring_func": "sigmoid", "use_routing_bias": True, "use_qk_norm": False,
        "qk_norm_type": "per_layer", "rotary_dim": 8, "num_mtp_modules": 0,
    }),
    Family("GptOssForCausalLM", "gpt_oss", {
        **LOCAL, "sliding_window": 128, "swiglu_limit": 7.0, "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }, error="GptOssForCausalLM requires one of"),
    Family("Llama4ForCausalLM", "llama4_text", {
        **LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 64,
        "interleave_moe_layer_step": 1, "attn_temperature_tuning": False, "use_qk_norm": False,
        "no_rope_layers": [1, 1, 1], "attention_chunk_size": None, "layer_types": FULL,
    }, error="NotImplementedError"),
    Family("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", {
        **PLAIN, "moe_topk": PER_TOKEN, "num_shared_expert": 1, "use_mixed_mlp_moe": True,
        "use_qk_norm": False, "attention_head_dim": 16, "use_cla": False, "cla_share_factor": 1,
    }),
    Family("HYV3ForCausalLM", "hy_v3", {
        **PLAIN, "num_shared_experts": 1, "route_norm": True, "first_k_dense_replace": 1,
        "router_scaling_factor": 2.5, "qk_norm": True,
    }),
    Family("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", {
        "moe_num_experts": EXPERTS, "moe_k": PER_TOKEN, "moe_num_shared_experts": 1,
        "moe_layer_interval": 1, "moe_layer_start_index": 1, "moe_layer_end_index": 2,
        "use_bias": False,
    }, is_in_ci=True),
    Family("Qwen3NextForCausalLM", "qwen3_next", {
        **PLAIN, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4, "full_attention_interval": 3, "partial_rotary_factor": 0.5,
    }, error="CUDA"),
    Family("ExaoneMoEForCausalLM", "exaone_moe", {
        **PLAIN, **GROUPED, "num_shared_experts": 1, "is_moe_layer": [False, True, True],
        "layer_types": WINDOWED, "sliding_window": 128,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    }, error="is required for ExaoneMoEForCausalLM"),
    Family("Grok1ForCausalLM", "grok-1", {
        **LOCAL, "num_experts_per_tok": 2, "embedding_multiplier_scale": 1.0,
        "output_multiplier_scale": 1.0, "attn_output_multiplier": 1.0,
    }, True, error="0 active drivers"),
    Family("LagunaForCausalLM", "laguna", {
        **PLAIN, "layer_types": WINDOWED, "mlp_layer_types": ["dense", "sparse", "sparse"],
        "shared_expert_intermediate_size": 32, "moe_routed_scaling_factor": 2.5,
        "moe_router_score_func": "sigmoid", "gating": True, "attention_bias": False,
        "partial_rotary_factor": 0.5, "sliding_window": 128,
    }),
    Family("Lfm2MoeForCausalLM", "lfm2_moe", {
        **PLAIN, "layer_types": ["conv", "full_attention", "full_attention"], "num_dense_layers": 1,
        "norm_topk_prob": True, "use_expert_bias": True, "norm_eps": 1e-6,
        "routed_scaling_factor": 1.0, "conv_L_cache": 3, "conv_bias": False,
    }, error="0 active drivers"),
    Family("MiMoV2FlashForCausalLM", "mimo_v2_flash", {
        **GROUPED, "n_routed_experts": EXPERTS, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "moe_layer_freq": [0, 1, 1], "hybrid_layer_pattern": [0, 1, 0],
        "layernorm_epsilon": 1e-6,
        "v_head_dim": 16, "swa_head_dim": 16, "swa_v_head_dim": 16, "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2, "sliding_window_size": 128, "swa_rope_theta": 10000.0,
        "attention_bias": False, "partial_rotary_factor": 0.5, "attention_value_scale": None,
    }, True, error="unexpected keyword argument 'sinks'"),
    Family("SarvamMoEForCausalLM", "sarvam_moe", {
        **PLAIN, "num_shared_experts": 1, "first_k_dense_replace": 1, "score_function": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "use_qk_norm": True,
        "moe_router_enable_expert_bias": True, "n_group": 1, "topk_group": 1,
        "moe_shared_expert_intermediate_size": 32,
        "use_bias": False, "use_qkv_bias": False, "norm_head": False, "embedding_dropout": 0.0,
        **ROPE,
    }, True),
    Family("SDARMoeForCausalLM", "sdar_moe", {
        **PLAIN, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }, True),
    Family("Step3p5ForCausalLM", "step3p5", {
        "moe_num_experts": EXPERTS, "moe_top_k": PER_TOKEN, "moe_layers_enum": "1,2",
        "moe_router_scaling_factor": 2.5, "need_fp32_gate": True, "num_attention_groups": 2,
        "partial_rotary_factors": [0.5, 0.5, 0.5], "share_expert_dim": 32, "layer_types": WINDOWED,
        "swiglu_limits": [0, 0, 0], "swiglu_limits_shared": [0, 0, 0],
        "use_head_wise_attn_gate": True, "use_moe_router_bias": True, "yarn_only_types": [],
        "sliding_window": 128, "attention_other_setting": {
            "num_attention_heads": 4, "num_attention_groups": 2, "head_dim": 16,
        },
        "scale_emb": 1.0, "rope_theta": [10000.0] * 3,
    }, is_in_ci=True),
    Family("XllmForCausalLM", "xllm", {
        **PLAIN, "norm_topk_prob": True, "num_dense_layers": 1, "num_shared_experts": 1,
        "router_score_func": "sigmoid", "router_scaling_factor": 2.5,
    }, dtype="bfloat16"),
    Family("Cohere2MoeForCausalLM", "cohere2_moe", {
        **PLAIN, "norm_topk_prob": True, "num_shared_experts": 1, "first_k_dense_replace": 1,
        "expert_selection_fn": "sigmoid", "layer_norm_eps": 1e-6, "layer_types": FULL,
        "logit_scale": 1.0, "sliding_window": 128, "tie_word_embeddings": True,
        "prefix_dense_intermediate_size": 64,
    }),
    Family("Gemma4ForCausalLM", "gemma4_text", {
        **PLAIN, "top_k_experts": PER_TOKEN, "enable_moe_block": True,
        "hidden_activation": "gelu_pytorch_tanh", "layer_types": FULL, "sliding_window": 128,
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 16,
        "num_global_key_value_heads": 2,
    }, error="Gemma4 only supports"),
    Family("IQuestQ1ForCausalLM", "iquest_q1", {
        **PLAIN, "dense_intermediate_size": 64, "enable_sink_attention": False,
        "use_hybrid_layers": False, "mlp_only_layers": [], "no_rope_layers": [0, 0, 0],
        "sliding_window": 128, "rotary_dim": 8,
    }, error="requires FA3 attention"),
    Family("Glm4MoeLiteForCausalLM", "glm4_moe_lite", {
        **MLA, **GROUPED, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    }, error="Expected size for first two dimensions of batch2 tensor"),
    Family("KimiLinearForCausalLM", "kimi_linear", {
        **PLAIN, "kv_lora_rank": 32, "q_lora_rank": None, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16, "v_head_dim": 16, "num_experts_per_token": PER_TOKEN,
        "num_shared_experts": 1, "first_k_dense_replace": 1, "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid", "routed_scaling_factor": 2.5,
        "use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1, "mla_use_nope": True,
        "linear_attn_config": {
            "kda_layers": [1, 2], "full_attn_layers": [3], "head_dim": 16, "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
    }, error="0 active drivers"),
    Family("NemotronHForCausalLM", "nemotron_h", {
        "n_routed_experts": EXPERTS, "n_shared_experts": 1, "hybrid_override_pattern": "M*E",
        "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 16, "conv_kernel": 4,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1,
        "moe_shared_expert_intermediate_size": 32, "mlp_hidden_act": "relu2",
        "n_groups": 1,
    }, error="Error"),
)  # fmt: skip


def write(family: Family, folder: Path) -> Path:
    """The family's model folder, below ``folder``: configuration and tokenizer, no weights."""
    model = folder / family.architecture
    model.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, model)
    config = {
        **SIZES,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.config,
    }
    if family.is_own_type:
        config["auto_map"] = {"AutoConfig": "configuration.Configuration"}
        text = OWN_CONFIGURATION.format(model_type=family.model_type)
        (model / "configuration.py").write_text(text)
    (model / "config.json").write_text(json.dumps(config, indent=2))
    return model
