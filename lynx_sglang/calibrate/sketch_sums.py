"""Sums over the tokens of some layers' experts, from which their sketches are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lynx_sglang.calibrate.sketch_layer import ExpertSums, FittedLayer

MEMORY_BYTES = 8e9  # of the sums of layers that one pass fits together


def bytes_of_layer(num_experts: int, hidden_size: int) -> int:
    """Memory of one layer's sums, of fitting and of judging tokens: float64."""
    return num_experts * 2 * (2 * hidden_size**2 + 2 * hidden_size) * 8


def groups_of(layers: Sequence[int], num_experts: int, hidden_size: int) -> list[list[int]]:
    """Layers that one pass sums up together, within MEMORY_BYTES or one by one."""
    size = max(1, int(MEMORY_BYTES // bytes_of_layer(num_experts, hidden_size)))
    return [list(layers[first : first + size]) for first in range(0, len(layers), size)]


def file_of(folder: Path, layer_id: int) -> Path:
    return folder / f"layer-{layer_id}.safetensors"


class SketchSums:
    """By layer and expert, weighted by the squares of the router's weights."""

    def __init__(self, layer_ids: Sequence[int]) -> None:
        self._experts: dict[int, list[ExpertSums]] = {layer: [] for layer in layer_ids}

    def note(
        self,
        layer_id: int,
        num_experts: int,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        outputs: Tensor,
        judges: Tensor,
    ) -> None:
        """Count tokens that use one expert each; layers that are not asked for are left out.

        Args:
            x, outputs: float [N, H], of the experts, before any weight.
            ids: [N]; those outside of the routed experts, [0, num_experts), are left out.
            weights: float [N], the router's.
            judges: bool [N], tokens that judge the fit.
        """
        if layer_id not in self._experts:
            return
        if not self._experts[layer_id]:
            hidden = x.shape[1]
            self._experts[layer_id] = [ExpertSums.empty(hidden) for _ in range(num_experts)]
        x, outputs, squares = x.cpu(), outputs.cpu(), weights.double().square().cpu()
        ids = ids.cpu()
        for expert in ids.unique().tolist():
            if 0 <= expert < num_experts:
                sums, is_own = self._experts[layer_id][expert], ids == expert
                for part, chosen in ((sums.fitting, ~judges), (sums.judging, judges)):
                    mine = is_own & chosen
                    if mine.any():
                        part.note(x[mine], outputs[mine], squares[mine])

    def fit(self, folder: Path) -> None:
        """Write each layer's sketches of all ranks."""
        for layer_id, experts in self._experts.items():
            FittedLayer.of(experts, spares_judges=True).save(file_of(folder, layer_id))
