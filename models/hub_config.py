"""A model's sizes as a Hugging Face `config.json`, and back.

A softmax router is written as Qwen3-MoE, a sigmoid router as GLM-4.5 (`glm4_moe`): DeepSeek-V3's
routing with plain grouped-query attention, which SGLang serves on any device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.shape import Grouping, Shape

QWEN3_MOE, GLM4_MOE = "Qwen3MoeForCausalLM", "Glm4MoeForCausalLM"


def config_of(shape: Shape, end: int, pad: int) -> dict[str, Any]:
    """The configuration of a model whose turns end with token `end`."""
    common = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "float32",
        "eos_token_id": end,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.dense_inner or shape.inner * shape.top_k,
        "max_position_embeddings": shape.positions,
        "moe_intermediate_size": shape.inner,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "output_router_logits": False,
        "pad_token_id": pad,
        "rms_norm_eps": shape.epsilon,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }
    return common | (_qwen3_moe(shape) if shape.grouping is None else _glm4_moe(shape))


def _qwen3_moe(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": [QWEN3_MOE],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "max_window_layers": shape.layers,
        "mlp_only_layers": list(range(shape.dense_layers)),
        "num_experts": shape.experts,
        "router_aux_loss_coef": 0.01,
        "sliding_window": None,
        "use_sliding_window": False,
    }


def _glm4_moe(shape: Shape) -> dict[str, Any]:
    assert shape.grouping is not None
    return {
        "architectures": [GLM4_MOE],
        "model_type": "glm4_moe",
        "first_k_dense_replace": shape.dense_layers,
        "n_group": shape.grouping.groups,
        "n_routed_experts": shape.experts,
        "n_shared_experts": shape.shared_experts,
        "num_nextn_predict_layers": 0,
        "partial_rotary_factor": 1.0,
        "routed_scaling_factor": shape.grouping.scale,
        "topk_group": shape.grouping.kept_groups,
        "use_qk_norm": True,
    }


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The sizes in a configuration that `config_of` wrote."""
    (architecture,) = config["architectures"]
    if architecture == QWEN3_MOE:
        special: dict[str, Any] = {"experts": config["num_experts"]}
        dense_layers = len(config["mlp_only_layers"])
    elif architecture == GLM4_MOE:
        special = {
            "experts": config["n_routed_experts"],
            "shared_experts": config["n_shared_experts"],
            "grouping": Grouping(
                config["n_group"], config["topk_group"], config["routed_scaling_factor"]
            ),
        }
        dense_layers = config["first_k_dense_replace"]
    else:
        raise ValueError(f"architectures must be {QWEN3_MOE} or {GLM4_MOE}, got {architecture!r}")
    return Shape(
        vocabulary=config["vocab_size"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        top_k=config["num_experts_per_tok"],
        inner=config["moe_intermediate_size"],
        positions=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        epsilon=config["rms_norm_eps"],
        dense_layers=dense_layers,
        dense_inner=config["intermediate_size"] if dense_layers else 0,
        **special,
    )
