"""Fit the sketches of a model's experts within a byte budget, from passes over the text.

Each layer's sums are gathered in passes with every expert, as many layers in one as memory holds,
and its sketches of all ranks go to a file: a run that was interrupted goes on. Then the budget is
spent where it explains most held-out energy.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lynx_sglang import sketches
from lynx_sglang.calibrate.passes import Passes
from lynx_sglang.calibrate.sketch_budget import Budgeted, within
from lynx_sglang.calibrate.sketch_layer import FittedLayer
from lynx_sglang.calibrate.sketch_sums import file_of, groups_of
from lynx_sglang.evaluation.server import EvaluationError


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model's MoE layers: routed experts, hidden size, inner size of an expert."""

    num_experts: int
    hidden_size: int
    inner_size: int

    @classmethod
    def of(cls, config: Any, num_experts: int) -> Shape:
        """From a Hugging Face text configuration."""
        values = config.to_dict()
        inner = values.get("moe_intermediate_size") or values["intermediate_size"]
        return cls(num_experts, values["hidden_size"], inner)

    @property
    def expert_values(self) -> int:
        """Numbers of one expert's weights."""
        return 3 * self.hidden_size * self.inner_size


def fit_sketches(passes: Passes, folder: Path, shape: Shape, share: float) -> Budgeted:
    """Sketches of all layers within a share of the bytes of the experts' weights.

    Args:
        folder: of the layers' files; those of an interrupted run are used.
        share: in (0, 1], at an equal number of bytes per weight.

    Raises:
        EvaluationError: the engine wrote no file of a layer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers = passes.state()["layers"]
    todo = [layer for layer in layers if not file_of(folder, layer).exists()]
    with tqdm(total=len(layers), initial=len(layers) - len(todo), unit="layer") as bar:
        bar.set_description("sketches")
        for group in groups_of(todo, shape.num_experts, shape.hidden_size):
            passes.fit(group, folder)
            bar.update(len(group))
    missing = [layer for layer in layers if not file_of(folder, layer).exists()]
    if missing:
        raise EvaluationError(f"no sketches were fitted in layers {missing}: see the log above")
    fitted = {layer: FittedLayer.load(file_of(folder, layer)) for layer in layers}
    return within(fitted, int(share * len(layers) * shape.num_experts * shape.expert_values))


def save(found: Budgeted, path: Path, weights_sha256: str, shape: Shape) -> dict[str, Any]:
    """Write the sketches' file; returns the calibration's entry about it."""
    values = sum(int(each.sketches.sizes.sum()) for each in found.layers.values())
    return {
        "file": path.name,
        "sha256": sketches.save(path, found.layers),
        "weights_sha256": weights_sha256,
        "share": values / (len(found.layers) * shape.num_experts * shape.expert_values),
        "bytes": path.stat().st_size,
        "unexplained": [round(each, 4) for each in found.unexplained.values()],
        "mean_rank": [round(sum(each) / len(each), 2) for each in found.ranks.values()],
    }


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
