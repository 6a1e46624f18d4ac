"""A model's calibration: its quality loss under caps, measured once by ``lynx-sglang calibrate``.

One small JSON file that ``--lynx-calibration`` reads at start, and the file of its sketches beside
it where it has any. It is valid for the model, the policy and the version of Lynx that it was
measured with; sketches are valid for the model's weights.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lynx_controller.decide.budget import MOST_OFFSET
from lynx_sglang import sketches
from lynx_sglang.errors import SettingError, short
from lynx_sglang.sketches import StandIns

FORMAT = 5
# Fields of a Hugging Face configuration that differ by library or folder for the same model.
INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


@dataclass(frozen=True, slots=True)
class Calibration:
    """KL is the mean KL to the full model in nats per token; see ``calibrate.measure``."""

    format: int
    lynx: str  # version
    model: str  # path, for people; ``model_sha256`` is compared
    model_sha256: str
    policy: str
    rows: int  # tokens of a group that shared experts, as in a decode step
    tokens: int  # measured tokens behind prompts
    quality_loss: float  # allowed KL
    min_retained_mass: float  # mass covered by the deepest cut measured that stays within it
    # share, active_experts, retained_mass, covered_mass, kl, kl_interval_95
    shares: list[dict[str, Any]]
    layer_share: float
    layer_kl: list[float]  # of capping that layer alone, at layer_share
    layer_offsets: list[float]  # difference of a layer's share from the mean share
    # [L][E] in [0, 1], typical size of an expert's output; None where the policy does not use it.
    contributions: list[list[float]] | None
    sketch_bytes: float = 0.0  # share of the experts' bytes that was allowed to sketches
    # file, sha256, weights_sha256, share, bytes, unexplained [L], mean_rank [L]; None: no sketches.
    sketches: dict[str, Any] | None = None
    refilled: list[dict[str, Any]] | None = None  # as ``shares``, without the sketches

    def save(self, path: Path) -> None:
        """Write the whole file or, on an error, none of it."""
        partial = path.with_name(path.name + ".new")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(partial, path)

    def contributions_of(self, layer_ids: list[int], num_experts: int) -> dict[int, torch.Tensor]:
        """By layer id: float32 [E] on the CPU; empty where the policy uses none.

        Raises:
            SettingError: the file has other layers or experts.
        """
        if self.contributions is None:
            return {}
        found = [len(layer) for layer in self.contributions]
        if found != [num_experts] * len(layer_ids):
            raise SettingError(
                f"--lynx-calibration: contributions: expected {len(layer_ids)} layers of "
                f"{num_experts} experts, got {len(found)} of {sorted(set(found))}"
            )
        rows = torch.tensor(self.contributions, dtype=torch.float32)
        return dict(zip(layer_ids, rows, strict=True))

    def stand_ins_of(
        self, path: str, model_path: str, layer_ids: list[int], num_experts: int
    ) -> dict[int, StandIns]:
        """Sketches by layer id, on the CPU, of a calibration that has them.

        Args:
            path: of this calibration; the sketches' file is beside it.
            model_path: folder or name of the model that is served.

        Raises:
            SettingError: the file is not the one that was measured with, or of other weights.
        """
        assert self.sketches is not None
        found = sketches.weights_fingerprint(model_path)
        if found != self.sketches["weights_sha256"]:
            raise SettingError(
                "--lynx-calibration: its sketches are of other weights: they were fitted on "
                f"{self.model} (weights {self.sketches['weights_sha256'][:12]}), these are "
                f"{found[:12]}. Calibrate this model."
            )
        file = Path(path).with_name(self.sketches["file"])
        return sketches.load(file, self.sketches["sha256"], layer_ids, num_experts)

    def refusal(self, model_config: Any) -> str | None:
        """The reason to refuse this file for a Hugging Face text configuration; None if it fits."""
        found = fingerprint(model_config)
        if found == self.model_sha256:
            return None
        return (
            f"--lynx-calibration is of another model: it was measured on {self.model} "
            f"(configuration {self.model_sha256[:12]}), this one has {found[:12]}. "
            "Calibrate this model, or remove the option."
        )


SKETCH_NAMES = ("file", "sha256", "weights_sha256")


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _are_numbers(values: object, low: float, high: float) -> bool:
    return isinstance(values, list) and all(_is_number(value, low, high) for value in values)


# Entries that a server reads: the rest is for people.
CHECKS: dict[str, Callable[[Any], bool]] = {
    "policy": lambda value: isinstance(value, str),
    "model": lambda value: isinstance(value, str),
    "model_sha256": lambda value: isinstance(value, str),
    "min_retained_mass": lambda value: _is_number(value, 0.01, 1.0),
    "layer_offsets": lambda values: (
        bool(values) and _are_numbers(values, -MOST_OFFSET, MOST_OFFSET)
    ),
    "contributions": lambda layers: (
        layers is None
        or (isinstance(layers, list) and all(_are_numbers(layer, 0.0, 1.0) for layer in layers))
    ),
    "sketches": lambda value: (
        value is None
        or (
            isinstance(value, dict)
            and all(isinstance(value.get(key), str) for key in SKETCH_NAMES)
            and Path(value["file"]).name == value["file"]
        )
    ),
}


def version() -> str:
    return importlib.metadata.version("lynx-sglang")


def fingerprint(model_config: Any) -> str:
    """SHA-256 of a Hugging Face text configuration; fine-tuned weights do not change it."""
    values = {key: value for key, value in model_config.to_dict().items() if key not in INCIDENTAL}
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def load(path: str, policy: str) -> Calibration:
    """Read a file for a server with ``policy``.

    Raises:
        SettingError: the file is no calibration, is stale, or was measured with another policy.
    """
    where = f"--lynx-calibration {path}"
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"{where}: cannot be read: {error}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise SettingError(f"{where}: not a file of `lynx-sglang calibrate`")
    if values["format"] != FORMAT or values.get("lynx") != version():
        found, form = (short(values.get(name)).strip("'") for name in ("lynx", "format"))
        raise SettingError(
            f"{where}: stale: written by version {found} in format {form}, "
            f"this is {version()} and reads {FORMAT}. Calibrate again."
        )
    names = {one.name for one in fields(Calibration)}
    if values.keys() != names:
        odd = ", ".join(sorted(values.keys() ^ names))[:200]
        raise SettingError(f"{where}: damaged: missing or unknown: {odd}. Calibrate again.")
    for name, is_right in CHECKS.items():
        if not is_right(values[name]):
            raise SettingError(f"{where}: damaged: {name} is {short(values[name])}")
    calibration = Calibration(**values)
    if calibration.policy != policy:
        raise SettingError(
            f"{where}: measured with --lynx-policy {calibration.policy[:40]}, "
            f"this server has {policy}"
        )
    return calibration
