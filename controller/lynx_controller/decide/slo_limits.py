"""The SLO as limits on statistics of the inter-token gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

from lynx_controller.types import Slo, Statistic


@dataclass(frozen=True, slots=True)
class SloLimits:
    """Of all limits, the binding one leaves a step the least time."""

    slo: Slo
    limits_ms: dict[Statistic, float]  # of the gaps
    ttft_ms: float | None

    @classmethod
    def of(cls, slo: Slo) -> SloLimits:
        limits = {slo.percentile: slo.itl_ms, None: slo.tpot_ms}
        return cls(slo, {each: ms for each, ms in limits.items() if ms is not None}, slo.ttft_ms)

    def __bool__(self) -> bool:
        return bool(self.limits_ms) or self.ttft_ms is not None

    def binding(self, tails: Mapping[Statistic, float]) -> tuple[float, float, Statistic]:
        """Limit in ms (inf: none), relative tail of the gaps above the step time, statistic."""
        found = [
            (limit_ms / max(1.0 + tails.get(each, 0.0), 0.5), limit_ms, tails.get(each, 0.0), each)
            for each, limit_ms in self.limits_ms.items()
        ]
        return min(found, key=itemgetter(0), default=(math.inf, math.inf, 0.0, None))[1:]

    def state(self) -> dict[str, float | None]:
        """For telemetry."""
        return {
            "slo_ms": self.slo.itl_ms,
            "percentile": self.slo.percentile,
            "tpot_ms": self.slo.tpot_ms,
            "ttft_ms": self.slo.ttft_ms,
        }
