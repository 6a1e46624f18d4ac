"""One layer's sketches before a byte budget: every rank of every expert, and its held-out energy.

A part of the tokens judges the fit on the others: it chooses the ridge and says what each rank
explains.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lynx_kernels.sketch import Sketch
from lynx_sglang.calibrate.sketch_fit import Moments, fit

RIDGES = (1e-3, 1e-2, 1e-1)
MAX_RANK = 16
FORMS = (False, True)  # through the origin, and through the means (with a bias)


@dataclass(slots=True)
class ExpertSums:
    """One expert's sums over tokens that fit and over those that judge."""

    fitting: Moments
    judging: Moments

    @classmethod
    def empty(cls, hidden: int) -> ExpertSums:
        return cls(Moments.empty(hidden), Moments.empty(hidden))

    @property
    def all(self) -> Moments:
        return self.fitting + self.judging


@dataclass(frozen=True, slots=True)
class FittedLayer:
    """Sketches of E experts in both forms (2) and all ranks up to R.

    down, up: float32 [E, 2, R, H]; x_mean, y_mean: float32 [E, H];
    explained: float64 [E, 2, R + 1], held-out energy by rank, of a fit on the other tokens;
    missed: float64 [E, 2, R + 1], energy of all tokens that the sketch misses, by rank;
    energy, judged: float64 [E], of all tokens and of the held-out ones; mass: float64 [E], sum of
    squared router weights.
    """

    down: Tensor
    up: Tensor
    x_mean: Tensor
    y_mean: Tensor
    explained: Tensor
    missed: Tensor
    energy: Tensor
    judged: Tensor
    mass: Tensor

    @classmethod
    def of(cls, experts: list[ExpertSums], *, spares_judges: bool) -> FittedLayer:
        """Fit with the ridge that explains most held-out energy of the layer.

        Args:
            spares_judges: the tokens that judge stay out of the sketches too, so that the text can
                also measure what the sketches do; else they are fitted on all tokens.
        """
        hidden = len(experts[0].fitting.x)
        most = min(MAX_RANK, hidden)
        by_ridge = [_explained(experts, ridge, most) for ridge in RIDGES]
        best = max(range(len(RIDGES)), key=lambda i: float(by_ridge[i].amax(dim=(1, 2)).sum()))
        count = len(experts)
        down, up = torch.zeros(count, 2, most, hidden), torch.zeros(count, 2, most, hidden)
        means = torch.zeros(2, count, hidden)
        missed = torch.zeros(count, 2, most + 1, dtype=torch.float64)
        sums = [each.all for each in experts]
        for e, each in enumerate(sums):
            missed[e] = each.energy
            used = experts[e].fitting if spares_judges else each
            if used.mass > 0:
                means[0, e], means[1, e] = used.x / used.mass, used.y / used.mass
                for form in FORMS:
                    final = fit(used, RIDGES[best], form)
                    down[e, int(form)] = final.down[:most]
                    up[e, int(form)] = final.up[:, :most].t()
                    missed[e, int(form)] -= final.explained(each)[: most + 1]
        return cls(
            down,
            up,
            means[0],
            means[1],
            by_ridge[best],
            missed.clamp(min=0.0),
            _column([each.energy for each in sums]),
            _column([each.judging.energy for each in experts]),
            _column([each.mass for each in sums]),
        )

    def save(self, path: Path) -> None:
        """Write the whole file or, on an error, none of it."""
        partial = path.with_name(path.name + ".new")
        save_file({one.name: getattr(self, one.name).contiguous() for one in fields(self)}, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> FittedLayer:
        return cls(**load_file(path))

    def sketch(self, expert: int, form: int, rank: int) -> Sketch:
        """One expert's sketch of a rank; form 1 has a bias."""
        down, up = self.down[expert, form, :rank], self.up[expert, form, :rank].t()
        bias = None
        if form:
            bias = self.y_mean[expert] - up @ (down @ self.x_mean[expert])
        return Sketch(down.contiguous(), up.contiguous(), bias)


def _explained(experts: list[ExpertSums], ridge: float, most: int) -> Tensor:
    """Held-out energies [E, 2, most + 1] of fits on the other tokens; 0 without such tokens."""
    found = torch.zeros(len(experts), 2, most + 1, dtype=torch.float64)
    for e, each in enumerate(experts):
        if each.fitting.mass > 0:
            for form in FORMS:
                one = fit(each.fitting, ridge, form)
                found[e, int(form)] = one.explained(each.judging)[: most + 1]
    return found


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
