"""The pacer: what prefills cost, the late gaps left to them, and the pace of the next one."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Any, Final

from lynx_controller.controller import Controller
from lynx_controller.decide.pacing import (
    MOST_STEPS,
    Bounds,
    Pace,
    Rule,
    decode_percentile,
    late_share,
    pace,
)
from lynx_controller.failures import Failures
from lynx_controller.learn.prefill import PrefillCost
from lynx_controller.types import Batch, Slo

SAVED_STEPS: Final = 256  # decode steps whose unspent late gaps are kept
MEMORY: Final = 1 / 256  # gain per step of the share of late gaps without prefill


class Pacer:
    """Learns from steps of both kinds and decides the pace of prefill. `decide` never raises."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.cost = PrefillCost()
        self.pace = Pace(bounds.most, 0, Rule.UNPACED)
        self.late_gaps = 0  # steps whose gap prefill made late
        self.credit_steps = 0.0  # at the rows of the last decode step
        self._credit = 0.0  # tokens: steps times rows
        self.decode_late = 0.0  # share of the gaps that are late without prefill, smoothed
        self._has_prefilled = False  # since the last decode step
        self._failures = Failures("left prefill to the engine")

    def prefilled(self, tokens: int, prefix: int, ms: float) -> None:
        """Take a prefill step; see `PrefillCost.learn`."""
        self._has_prefilled = True
        self.cost.learn(tokens, prefix, ms)

    def decoded(self, slo: Slo, rows: int, gap_ms: float) -> None:
        """Take a decode step and its gap: it earns credit, or was made late and costs some."""
        is_late = slo.itl_ms is not None and gap_ms > slo.itl_ms
        by_prefill, self._has_prefilled = is_late and self._has_prefilled, False
        self.late_gaps += by_prefill
        self.decode_late += MEMORY * (float(is_late and not by_prefill) - self.decode_late)
        paid = 1.0 / late_share(slo.percentile, self.decode_late) if by_prefill else 0.0
        credit = self._credit + rows * (1.0 - paid)
        self._credit = min(max(credit, -MOST_STEPS * rows), SAVED_STEPS * rows)
        self.credit_steps = self._credit / rows

    def decide(
        self, controller: Controller, slo: Slo, batch: Batch, prefix: int, wait_ms: float = 0.0
    ) -> Pace:
        """The pace beside a decode batch.

        Args:
            slo: of prefill and decoding together; the controller's own is `slo_of_decoding`.
            prefix: tokens before the next chunk's, 0 for a new prompt.
            wait_ms: of the oldest request without a first token; it counts under a TTFT SLO.
        """
        try:
            self.pace = self._decide(controller, slo, batch, prefix, wait_ms)
        except Exception as error:  # the engine must go on: its own pace
            self._failures.note(error)
            self.pace = Pace(self.bounds.most, 0, Rule.FAILED)
        return self.pace

    def state(self) -> dict[str, Any]:
        """For telemetry."""
        return {
            "chunk_tokens": self.pace.chunk_tokens,
            "interval": self.pace.interval,
            "rule": self.pace.rule.value,
            "credit_steps": self.credit_steps,
            "late_gaps": self.late_gaps,
            "decode_late": self.decode_late,
            "prefills": self.cost.samples,
            **self.cost.state(),
            "failures": self._failures.total,
        }

    def _decide(
        self, controller: Controller, slo: Slo, batch: Batch, prefix: int, wait_ms: float
    ) -> Pace:
        reach_ms = controller.reach_ms(batch)
        if slo.itl_ms is None or reach_ms is None or not self.cost.is_known:
            return Pace(self.bounds.most, 0, Rule.UNPACED)
        noise = 1.0 + score(decode_percentile(slo.percentile)) * controller.noise
        return pace(
            slo.itl_ms,
            reach_ms[1] * noise,
            self.cost,
            prefix,
            self.credit_steps,
            self.bounds,
            waited=0.0 if slo.ttft_ms is None else wait_ms / slo.ttft_ms,
        )


def slo_of_decoding(slo: Slo) -> Slo:
    """The controller's SLO beside a pacer: gaps without their prefill, at a higher percentile."""
    return Slo(slo.itl_ms, min(decode_percentile(slo.percentile), 99.9), slo.tpot_ms, slo.ttft_ms)


@cache
def score(percentile: float) -> float:
    """Standard deviations of the normal percentile above its mean."""
    return NormalDist().inv_cdf(percentile / 100.0)
