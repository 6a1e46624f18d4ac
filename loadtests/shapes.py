"""Load shapes: plateaus of a request rate, one after the other.

Written as ``SECONDSxRATE,...``: ``20x1,60x8,20x1`` is a step up and down again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plateau:
    """A time of constant mean rate; the load is the step between two."""

    duration_s: float
    rate_per_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"a plateau's seconds must be above 0, got {self.duration_s!r}")
        if not (math.isfinite(self.rate_per_s) and self.rate_per_s >= 0):
            raise ValueError(f"a plateau's rate must be 0 or more, got {self.rate_per_s!r}")

    def __str__(self) -> str:
        return f"{self.duration_s:g}x{self.rate_per_s:g}"


@dataclass(frozen=True, slots=True)
class Shape:
    """Plateaus in order."""

    plateaus: tuple[Plateau, ...]

    def __post_init__(self) -> None:
        if not self.plateaus:
            raise ValueError("a shape needs at least one plateau")

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape that ``text`` spells.

        Raises:
            ValueError: names the part that is wrong and what it should be.
        """
        plateaus = []
        for part in text.split(","):
            duration, _, rate = part.partition("x")
            try:
                plateaus.append(Plateau(float(duration), float(rate)))
            except ValueError as error:
                reason = f"{part!r} is not SECONDSxRATE such as 60x8 ({error})"
                raise ValueError(f"shape {text!r}: {reason}") from None
        return cls(tuple(plateaus))

    def __str__(self) -> str:
        return ",".join(map(str, self.plateaus))

    @property
    def duration_s(self) -> float:
        return sum(plateau.duration_s for plateau in self.plateaus)

    @property
    def edges_s(self) -> list[float]:
        """Start of each plateau, and the end of the last."""
        edges = [0.0]
        for plateau in self.plateaus:
            edges.append(edges[-1] + plateau.duration_s)
        return edges

    def arrivals_s(self, seed: int) -> Iterator[float]:
        """Poisson arrival times, the same for the same seed.

        A plateau's arrivals depend on the seed and its own numbers alone.
        """
        for index, (start_s, plateau) in enumerate(zip(self.edges_s, self.plateaus, strict=False)):
            rng = random.Random(f"{seed}/{index}")
            if plateau.rate_per_s == 0:
                continue
            at_s = rng.expovariate(plateau.rate_per_s)
            while at_s < plateau.duration_s:
                yield start_s + at_s
                at_s += rng.expovariate(plateau.rate_per_s)
