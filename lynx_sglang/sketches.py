"""A model's sketches on disk: the safetensors file beside its calibration.

``calibrate`` writes it, a server with ``--lynx-calibration`` reads it. It is of the weights that it
was fitted on: fine-tuned weights have another fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lynx_kernels.sketch import LayerSketches, covered_mass
from lynx_sglang.errors import SettingError, UnsupportedError

SKETCHES_ON_GPU = (
    "--lynx-calibration: its sketches are served on a CPU alone. "
    "Calibrate without --sketch-bytes for a GPU."
)
SAMPLE_BYTES = 64  # of each tensor, from its middle


@dataclass(frozen=True, slots=True)
class StandIns:
    """A layer's sketches, and figures of each expert.

    contribution: float32 [E] in [0, 1], the root mean square of an expert's output that its sketch
    misses, over the layer's greatest: see ``lynx_kernels.select``.
    cover: float32 [E] in [0, 1], the part of an expert's output that its sketch stands in for,
    1 - sqrt(share of held-out energy that it misses).
    """

    sketches: LayerSketches
    contribution: Tensor
    cover: Tensor

    def covered(self, retained_mass: Tensor, topk_weights: Tensor, lost_ids: Tensor) -> Tensor:
        """Retained mass and that of lost slots which sketches stand in for: [M]."""
        cover = torch.cat([self.cover, self.cover.new_zeros(1)])
        return covered_mass(retained_mass, topk_weights, lost_ids, cover)


def require_weights(config: Any, chosen: Tensor, given: Tensor) -> None:
    """Refuse a layer whose router weights are not those that its experts' outputs are added with.

    Args:
        config: SGLang's ``MoeRunnerConfig`` of the layer.
        chosen, given: router weights [M, K] after selection, and as the experts get them.

    Raises:
        UnsupportedError: names the layer.
    """
    if config.apply_router_weight_on_input or not torch.equal(chosen, given):
        raise UnsupportedError(
            f"sketches: MoE layer {config.layer_id} scales its router weights after selection, or "
            "its inputs by them. Calibrate this model without --sketch-bytes."
        )


def save(path: Path, layers: Mapping[int, StandIns]) -> str:
    """Write the whole file or, on an error, none of it; returns its SHA-256."""
    tensors: dict[str, Tensor] = {}
    for layer_id, each in layers.items():
        one = each.sketches
        tensors |= {
            f"{layer_id}.down": one.down,
            f"{layer_id}.up": one.up,
            f"{layer_id}.starts": one.starts,
            f"{layer_id}.bias": one.bias,
            f"{layer_id}.sizes": one.sizes,
            f"{layer_id}.contribution": each.contribution,
            f"{layer_id}.cover": each.cover,
        }
    partial = path.with_name(path.name + ".new")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    digest = sha256_of(partial)
    partial.replace(path)
    return digest


def load(
    path: Path, digest: str, layer_ids: Sequence[int], num_experts: int
) -> dict[int, StandIns]:
    """By layer id, on the CPU.

    Raises:
        SettingError: the file is missing, is not the one that the calibration names, or is of other
            layers or experts.
    """
    where = f"--lynx-calibration: its sketches {path}"
    try:
        if sha256_of(path) != digest:
            raise SettingError(f"{where} are not those that it was measured with. Calibrate again.")
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SettingError(f"{where} cannot be read: {error}") from error
    found = sorted({int(name.split(".")[0]) for name in tensors})
    if found != sorted(layer_ids) or len(tensors[f"{found[0]}.cover"]) != num_experts:
        raise SettingError(
            f"{where}: expected layers {list(layer_ids)} of {num_experts} experts, got {found}"
        )
    return {
        layer: StandIns(
            LayerSketches(
                *(tensors[f"{layer}.{name}"] for name in ("down", "up", "starts", "bias", "sizes"))
            ),
            tensors[f"{layer}.contribution"],
            tensors[f"{layer}.cover"],
        )
        for layer in layer_ids
    }


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def weights_fingerprint(model_path: str, revision: str | None = None) -> str:
    """SHA-256 over each tensor's name, dtype, shape and a few bytes from its middle.

    It does not depend on how the tensors are spread over files.

    Args:
        model_path: a folder, or a name on the Hugging Face hub that has been downloaded.

    Raises:
        SettingError: there are no safetensors files.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model_path, revision=revision, local_files_only=True))
    samples = sorted(each for path in folder.glob("*.safetensors") for each in samples_of(path))
    if not samples:
        raise SettingError(
            f"--lynx-calibration: sketches are of weights in safetensors files; {folder} has none"
        )
    digest = hashlib.sha256()
    for name, about, sample in samples:
        digest.update(f"{name} {about}".encode() + sample)
    return digest.hexdigest()


def samples_of(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, dtype and shape, and a sample of each tensor of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            file.seek(8 + length + start + max(end - start - SAMPLE_BYTES, 0) // 2)
            yield (
                name,
                f"{entry['dtype']} {entry['shape']}",
                file.read(min(SAMPLE_BYTES, end - start)),
            )
