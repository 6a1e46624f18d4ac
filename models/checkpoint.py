"""Reads and writes the model as a Hugging Face Qwen3-MoE folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model import Model, Shape
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START

LAYER_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "experts_norm.weight": "post_attention_layernorm.weight",
    "experts.router.weight": "mlp.gate.weight",
}


def _config(shape: Shape, end: int, pad: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "decoder_sparse_step": 1,
        "dtype": "float32",
        "eos_token_id": end,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.inner * shape.top_k,
        "max_position_embeddings": shape.positions,
        "max_window_layers": shape.layers,
        "mlp_only_layers": [],
        "moe_intermediate_size": shape.inner,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "output_router_logits": False,
        "pad_token_id": pad,
        "rms_norm_eps": shape.epsilon,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "router_aux_loss_coef": 0.01,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocabulary,
    }


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise RuntimeError(f"the tokenizer lacks {token}")
    return index


def to_hub(model: Model) -> dict[str, Tensor]:
    """The weights in bf16 under the names of Qwen3-MoE checkpoints on the Hub."""
    tensors = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        # Tied in training and stored twice: SGLang's Qwen3-MoE ignores tie_word_embeddings.
        "lm_head.weight": model.embedding.weight,
    }
    for index, layer in enumerate(model.layers):
        state = dict(layer.named_parameters())
        for ours, theirs in LAYER_NAMES.items():
            tensors[f"model.layers.{index}.{theirs}"] = state[ours]
        gate, up = state["experts.gate_up"].chunk(2, dim=1)
        for expert in range(model.shape.experts):
            prefix = f"model.layers.{index}.mlp.experts.{expert}"
            tensors[f"{prefix}.gate_proj.weight"] = gate[expert]
            tensors[f"{prefix}.up_proj.weight"] = up[expert]
            tensors[f"{prefix}.down_proj.weight"] = state["experts.down"][expert]
    return {name: t.detach().to(torch.bfloat16, copy=True) for name, t in tensors.items()}


def from_hub(tensors: dict[str, Tensor], shape: Shape) -> Model:
    """The model, in float32, from weights under the Hub's names."""
    model = Model(shape)
    state = {
        "embedding.weight": tensors["model.embed_tokens.weight"],
        "norm.weight": tensors["model.norm.weight"],
    }
    for index in range(shape.layers):
        hub, own = f"model.layers.{index}.", f"layers.{index}."
        for ours, theirs in LAYER_NAMES.items():
            state[own + ours] = tensors[hub + theirs]
        parts = {
            part: torch.stack(
                [tensors[f"{hub}mlp.experts.{e}.{part}.weight"] for e in range(shape.experts)]
            )
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        state[own + "experts.gate_up"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
        state[own + "experts.down"] = parts["down_proj"]
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


def save(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the whole folder; the weights are rounded to bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    end, pad = _token_id(tokenizer, TURN_END), _token_id(tokenizer, END_OF_TEXT)
    special = {
        str(_token_id(tokenizer, token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in (END_OF_TEXT, TURN_START, TURN_END)
    }
    files = {
        "config.json": _config(model.shape, end, pad),
        "generation_config.json": {
            "do_sample": False,
            "eos_token_id": [end, pad],
            "pad_token_id": pad,
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": special,
            "add_prefix_space": False,
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": TURN_END,
            "model_max_length": model.shape.positions,
            "pad_token": END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(to_hub(model), str(folder / "model.safetensors"), metadata={"format": "pt"})


def load(folder: Path) -> tuple[Model, Tokenizer]:
    """The model in float32 and its tokenizer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        vocabulary=config["vocab_size"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        experts=config["num_experts"],
        top_k=config["num_experts_per_tok"],
        inner=config["moe_intermediate_size"],
        positions=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        epsilon=config["rms_norm_eps"],
    )
    tensors = load_file(str(folder / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return from_hub(tensors, shape), tokenizer
