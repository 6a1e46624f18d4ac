"""Fit one expert's sketch: reduced-rank ridge regression, from sums over its own tokens.

Sums are all that is kept of tokens, so traffic streams through. A second set of sums, of other
tokens, judges a fit: no token is looked at twice.

Memory: an expert holds 2 H^2 + 2 H float64 numbers, whatever the number of tokens. A layer of
Qwen3-30B-A3B (H 2048, 128 experts) is 8.6 GB, and 17 GB with the sums that judge: one layer at a
time, and 48 passes over the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_kernels.sketch import Sketch

LEAST_RIDGE = 1e-9  # of the mean diagonal: a Gram matrix of few tokens is singular


@dataclass(slots=True)
class Moments:
    """Weighted sums over an expert's tokens of x [H] and of its output y [H], float64.

    mass: sum of weights; x, y: [H]; xx: [H, H]; xy: [H, H], inputs by outputs; energy: of |y|^2.
    """

    mass: float
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    energy: float

    @classmethod
    def empty(cls, hidden: int) -> Moments:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        square = zeros(hidden, hidden)
        return cls(0.0, zeros(hidden), zeros(hidden), square, square.clone(), 0.0)

    def note(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add tokens: x, y [N, H], weights [N] >= 0 (squares of the router's)."""
        x, y, weights = x.double(), y.double(), weights.double().unsqueeze(1)
        self.mass += float(weights.sum())
        self.x += (weights * x).sum(dim=0)
        self.y += (weights * y).sum(dim=0)
        self.xx += x.t() @ (weights * x)
        self.xy += x.t() @ (weights * y)
        self.energy += float((weights * y.square()).sum())

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.mass + other.mass,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.energy + other.energy,
        )

    def about(self, x: Tensor, y: Tensor) -> Moments:
        """The same sums of x and y less these constants."""
        return Moments(
            self.mass,
            self.x - self.mass * x,
            self.y - self.mass * y,
            self.xx - x.outer(self.x) - self.x.outer(x) + self.mass * x.outer(x),
            self.xy - x.outer(self.y) - self.x.outer(y) + self.mass * x.outer(y),
            self.energy - 2 * float(y @ self.y) + self.mass * float(y @ y),
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """A sketch of full rank, strongest components first, so that a lower rank is a prefix.

    down: [H, H], components by inputs; up: [H, H], outputs by components, orthonormal columns;
    centre: the means of x and y that the map goes through, None for a map through the origin.
    """

    down: Tensor
    up: Tensor
    centre: tuple[Tensor, Tensor] | None

    def at(self, rank: int, dtype: torch.dtype = torch.float32) -> Sketch:
        down, up = self.down[:rank], self.up[:, :rank]
        bias = None
        if self.centre is not None:
            bias = (self.centre[1] - up @ (down @ self.centre[0])).to(dtype)
        return Sketch(down.to(dtype), up.to(dtype), bias)

    def explained(self, held_out: Moments) -> Tensor:
        """Energy of `held_out` outputs that ranks 0 to H explain, float64 [H + 1].

        Negative where a sketch is worse than nothing. Columns of `up` are orthonormal, so that
        components add up.
        """
        start, sums = 0.0, held_out
        if self.centre is not None:
            sums = held_out.about(*self.centre)
            start = held_out.energy - sums.energy
        cross = ((self.down @ sums.xy) * self.up.t()).sum(dim=1)
        own = ((self.down @ sums.xx) * self.down).sum(dim=1)
        first = torch.tensor([start], dtype=torch.float64)
        return torch.cat([first, start + (2 * cross - own).cumsum(0)])


def fit(sums: Moments, ridge: float, is_centred: bool) -> Fit:
    """The map of least weighted squared error plus a ridge, its ranks in order of fitted energy.

    Args:
        sums: of at least one token of weight above 0; fewer tokens than H are enough.
        ridge: times the mean of the diagonal of xx.
        is_centred: the map goes through the means (has a bias), or through the origin.

    Raises:
        ValueError: no tokens, or a negative ridge.
    """
    if sums.mass <= 0:
        raise ValueError("sums: expected tokens of weight above 0, got none")
    if ridge < 0:
        raise ValueError(f"ridge: expected at least 0, got {ridge}")
    centre = (sums.x / sums.mass, sums.y / sums.mass) if is_centred else None
    if centre is not None:
        sums = sums.about(*centre)
    gram = sums.xx.clone()
    gram.diagonal().add_(max(ridge, LEAST_RIDGE) * float(gram.diagonal().mean()) + 1e-30)
    full = torch.linalg.solve(gram, sums.xy)  # [H, H], inputs by outputs
    fitted = full.t() @ sums.xy  # the fitted outputs' energy, ridge included
    _, vectors = torch.linalg.eigh((fitted + fitted.t()) / 2)
    up = vectors.flip(1)
    return Fit(up.t() @ full.t(), up, centre)
