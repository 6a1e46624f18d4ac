"""Which observations are worth learning from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .types import Observation, Phase

DECIDING: Final = (Phase.DECODE, Phase.VERIFY, Phase.MIXED)
RESTART: Final = 16  # steps until an engine that counts from zero again is believed


@dataclass(slots=True)
class Gate:
    """Turns away idle, prefill, empty, impossible, repeated and out-of-order steps."""

    max_step_ms: float
    last_step: int | None = None
    stale_step: int | None = None
    stale_run: int = 0

    def admits(self, seen: Observation) -> bool:
        if seen.phase not in DECIDING or not seen.rows >= 1:  # NaN fails both
            return False
        if not 0.0 < seen.step_ms <= self.max_step_ms:
            return False
        return self._is_next(seen.step)

    def _is_next(self, step: int) -> bool:
        if self.last_step is None or step > self.last_step:
            self.stale_step, self.stale_run = None, 0
            self.last_step = step
            return True
        rises = self.stale_step is None or step > self.stale_step
        self.stale_step, self.stale_run = step, self.stale_run + 1 if rises else 0
        if self.stale_run < RESTART:
            return False
        self.last_step = None
        return self._is_next(step)
