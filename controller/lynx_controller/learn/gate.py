"""Gate: the observations that are worth learning from."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Final

from lynx_controller.types import Observation, Phase

DECIDING: Final = (Phase.DECODE, Phase.VERIFY, Phase.MIXED)
RESTART: Final = 16  # steps in order after which a count from zero is accepted
BLIND: Final = 8  # unusable steps in a row after which full quality applies


@dataclass(slots=True)
class Gate:
    """Turns away idle, prefill, empty, impossible, repeated and out-of-order steps.

    The first three are normal; a run of the others means that the measurements have failed.
    """

    max_step_ms: float
    last_step: int | None = None
    stale_step: int | None = None
    stale_run: int = 0
    unusable: int = 0  # in a row

    @property
    def is_blind(self) -> bool:
        return self.unusable >= BLIND

    def admits(self, seen: Observation) -> bool:
        if seen.batch.phase not in DECIDING or seen.batch.rows == 0:
            return False
        rows = seen.batch.rows
        is_possible = rows >= 1 and 0.0 < seen.step_ms <= self.max_step_ms  # NaN fails both
        is_numbered = isinstance(seen.step, Integral)
        is_usable = is_possible and is_numbered and self._is_next(seen.step)
        self.unusable = 0 if is_usable else self.unusable + 1
        return is_usable

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
