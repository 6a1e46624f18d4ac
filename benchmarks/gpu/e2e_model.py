"""The model of the end-to-end run: a published shape, dummy weights, and a router with statistics.

SGLang fills the model with dummy values, so its own router would spread every batch evenly. Two
sets of router weights are made here and loaded into the running server instead:

    logits of expert e = scale[e] * <unit Gaussian row, normalised hidden state>

A hidden state is that of a random token, so each row draws its logits anew in each layer, and an
expert is popular for the length of its gate row. `uniform`: all lengths equal, the worst case.
`skewed`: log-normal lengths, with the spread at which 16 rows activate as large a part of what even
routing would as was published for Qwen3-30B-A3B: 48.8 experts (OEA, arXiv 2511.02237), of 82.4.
How sharp a row's own weights are is not published there: LOGIT_STD lets the strongest of its eight
hold about 0.3 of them under either router.

Under both, dummy experts add next to nothing to a hidden state, and all next tokens are about
equally probable: the KL to the full model would be 0 whatever is cut. A third checkpoint routes as
`skewed` does, with larger norms: outputs of gate and up projections have a standard deviation of
PROJECTION_STD, so that the experts outweigh the embedding, and the logits one of TOKEN_STD.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

PUBLISHED_ROWS, PUBLISHED_UNION, PUBLISHED_EVEN = 16, 48.8, 82.4
LOGIT_STD = {"skewed": 0.25, "uniform": 1.5}  # of an expert of median scale
ROUTERS = tuple(LOGIT_STD)
DUMMY_STD = 1e-3 / 3**0.5  # of SGLang's dummy weights, uniform in [-1e-3, 1e-3]
PROJECTION_STD, TOKEN_STD = 3.0, 2.0


@dataclass(frozen=True)
class Shape:
    """Of a Qwen3-MoE model, by its names in config.json."""

    num_hidden_layers: int
    hidden_size: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    torch_dtype: str


QWEN3_30B = Shape(48, 2048, 128, 8, 768, 32, 4, 128, 151936, "bfloat16")
TINY = Shape(2, 64, 16, 4, 32, 4, 2, 16, 512, "float32")


def write_model(folder: Path, shape: Shape) -> Path:
    """A folder that SGLang can start from with --load-format dummy."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "intermediate_size": 3 * shape.hidden_size,
        "max_position_embeddings": 4096,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-12,  # dummy embeddings are small: with it, hidden states have unit scale
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **asdict(shape),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def write_router(folder: Path, shape: Shape, router: str) -> Path:
    """A checkpoint of the gates, and of the norms before them, which dummy weights would shrink."""
    write_model(folder, shape)
    save(folder / "model.safetensors", router_of(shape, router))
    return folder


def router_of(shape: Shape, router: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    experts, hidden = shape.num_experts, shape.hidden_size
    spread = spread_of(experts, shape.num_experts_per_tok) if router == "skewed" else 0.0
    tensors = {}
    for layer in range(shape.num_hidden_layers):
        scale = LOGIT_STD[router] * np.exp(spread * rng.normal(size=(experts, 1)))
        gate = scale * rng.normal(size=(experts, hidden)) / np.sqrt(hidden)
        name = f"model.layers.{layer}"
        tensors[f"{name}.mlp.gate.weight"] = gate.astype(np.float32)
        tensors[f"{name}.post_attention_layernorm.weight"] = np.ones(hidden, np.float32)
    return tensors


def write_sensitive(folder: Path, shape: Shape) -> Path:
    """A checkpoint under which a cut shows in the next token: it routes as `skewed` does."""
    write_model(folder, shape)
    unit = np.float32(DUMMY_STD * shape.hidden_size**0.5)  # std of a projection of unit inputs
    scale = PROJECTION_STD / unit
    tensors = {
        name: tensor / scale if name.endswith("gate.weight") else tensor * scale
        for name, tensor in router_of(shape, "skewed").items()
    }
    tensors["model.norm.weight"] = np.full(shape.hidden_size, TOKEN_STD / unit, np.float32)
    save(folder / "model.safetensors", tensors)
    return folder


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """float32 tensors as safetensors: length of the header, header, bytes."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


@cache
def spread_of(num_experts: int, top_k: int) -> float:
    """Standard deviation of an expert's log scale that gives the published part of the union."""
    target = PUBLISHED_UNION / PUBLISHED_EVEN * union(num_experts, top_k, 0.0)
    low, high = 0.0, 2.0  # a toy model may not get as far
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if union(num_experts, top_k, middle) > target else (low, middle)
    return (low + high) / 2


def union(num_experts: int, top_k: int, spread: float, rows: int = PUBLISHED_ROWS) -> float:
    """Active experts of a batch, mean over layers of such routers."""
    rng = np.random.default_rng(1)
    scale = np.exp(spread * rng.normal(size=(400, 1, num_experts)))
    logits = scale * rng.normal(size=(400, rows, num_experts))
    chosen = np.argpartition(-logits, top_k - 1, axis=2)[:, :, :top_k].reshape(400, -1)
    return float(np.mean([len(set(layer)) for layer in chosen.tolist()]))
