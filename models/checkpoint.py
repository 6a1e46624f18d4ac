"""Reads and writes a model as a Hugging Face folder, which SGLang and transformers serve."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from models.hub_config import config_of, shape_of
from models.model import Model
from models.shape import Shape
from models.vocabulary import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START

LAYER_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "experts_norm.weight": "post_attention_layernorm.weight",
}
PARTS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
BIAS = "mlp.gate.e_score_correction_bias"


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise RuntimeError(f"the tokenizer lacks {token}")
    return index


def to_hub(model: Model) -> dict[str, Tensor]:
    """The weights under the names of checkpoints on the Hub: bf16, correction biases float32."""
    tensors = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        # Tied in training and stored twice: SGLang's MoE models ignore tie_word_embeddings.
        "lm_head.weight": model.embedding.weight,
    }
    for index, layer in enumerate(model.layers):
        hub, state = f"model.layers.{index}.", layer.state_dict()
        for ours, theirs in LAYER_NAMES.items():
            tensors[hub + theirs] = state[ours]
        if index < model.shape.dense_layers:
            tensors |= _split(f"{hub}mlp", state["dense.gate_up"], state["dense.down"])
            continue
        tensors[f"{hub}mlp.gate.weight"] = state["experts.router.weight"]
        for expert in range(model.shape.experts):
            parts = (state[f"experts.{part}"][expert] for part in ("gate_up", "down"))
            tensors |= _split(f"{hub}mlp.experts.{expert}", *parts)
        if model.shape.shared_experts:
            parts = (state[f"experts.shared.{part}"] for part in ("gate_up", "down"))
            tensors |= _split(f"{hub}mlp.shared_experts", *parts)
        if model.shape.grouping is not None:
            tensors[hub + BIAS] = state["experts.bias"]
    return {
        name: tensor.detach().to(
            torch.float32 if name.endswith(BIAS) else torch.bfloat16, copy=True
        )
        for name, tensor in tensors.items()
    }


def _split(prefix: str, gate_up: Tensor, down: Tensor) -> dict[str, Tensor]:
    gate, up = gate_up.chunk(2)
    return dict(zip((f"{prefix}.{part}" for part in PARTS), (gate, up, down), strict=True))


def _join(tensors: dict[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
    gate, up, down = (tensors[f"{prefix}.{part}"] for part in PARTS)
    return torch.cat([gate, up]), down


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
        if index < shape.dense_layers:
            state[f"{own}dense.gate_up"], state[f"{own}dense.down"] = _join(tensors, f"{hub}mlp")
            continue
        own += "experts."
        state[f"{own}router.weight"] = tensors[f"{hub}mlp.gate.weight"]
        pairs = (_join(tensors, f"{hub}mlp.experts.{expert}") for expert in range(shape.experts))
        state[f"{own}gate_up"], state[f"{own}down"] = map(torch.stack, zip(*pairs, strict=True))
        if shape.shared_experts:
            state[f"{own}shared.gate_up"], state[f"{own}shared.down"] = _join(
                tensors, f"{hub}mlp.shared_experts"
            )
        if shape.grouping is not None:
            state[f"{own}bias"] = tensors[hub + BIAS]
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
        "config.json": config_of(model.shape, end, pad),
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
    """The model in float32 and its tokenizer; `config.json` says which router it has.

    Raises:
        ValueError: the folder holds another architecture than `save` writes.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(str(folder / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return from_hub(tensors, shape_of(config)), tokenizer
