"""What all classes of requests together are promised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from lynx_controller.types import Slo, Statistic


@dataclass(frozen=True, slots=True)
class SloLimits:
    """All classes share the steps, so of one statistic the lowest limit holds."""

    slos: tuple[Slo, ...]
    limits_ms: dict[Statistic, float]  # of the gaps
    ttft_ms: float | None

    @classmethod
    def of(cls, slo: Slo | Sequence[Slo]) -> SloLimits:
        """Raises ValueError for none at all."""
        slos = (slo,) if isinstance(slo, Slo) else tuple(slo)
        if not slos:
            raise ValueError("at least one Slo is needed; Slo() promises nothing")
        limits: dict[Statistic, float] = {}
        for each in slos:
            for statistic, limit_ms in ((each.percentile, each.itl_ms), (None, each.tpot_ms)):
                if limit_ms is not None:
                    limits[statistic] = min(limit_ms, limits.get(statistic, limit_ms))
        ttfts = [each.ttft_ms for each in slos if each.ttft_ms is not None]
        return cls(slos, limits, min(ttfts, default=None))

    def __bool__(self) -> bool:
        return bool(self.limits_ms) or self.ttft_ms is not None

    def binding(self, tails: Mapping[Statistic, float]) -> tuple[float, float, Statistic]:
        """The limit that leaves a step the least time, its trim and statistic; inf: none."""
        found = [
            (limit_ms / max(1.0 + tails.get(each, 0.0), 0.5), limit_ms, tails.get(each, 0.0), each)
            for each, limit_ms in self.limits_ms.items()
        ]
        return min(found, key=itemgetter(0), default=(math.inf, math.inf, 0.0, None))[1:]

    def state(self) -> dict[str, float | None]:
        """The first class's, for telemetry."""
        first = self.slos[0]
        return {
            "slo_ms": first.itl_ms,
            "percentile": first.percentile,
            "tpot_ms": first.tpot_ms,
            "ttft_ms": first.ttft_ms,
        }
