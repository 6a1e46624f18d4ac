"""The controller's own errors: counted, and logged with their traceback at a falling rate."""

from __future__ import annotations

import logging
from collections import Counter
from types import TracebackType

logger = logging.getLogger("lynx_controller")


class Failures:
    """Logs the 1st, 2nd, 4th, 8th ... failure of one kind; a kind is an error raised at one line.

    The controller has no clock, so the rate follows counts: n failures write log2(n) lines.
    """

    def __init__(self, outcome: str = "chose full quality") -> None:
        self._outcome = outcome
        self.total = 0
        self.last: str | None = None
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def note(self, error: Exception) -> None:
        self.total += 1
        self.last = repr(error)[:200]
        kind = (type(error).__name__, *origin(error.__traceback__))
        self._counts[kind] += 1
        number = self._counts[kind]
        if number & (number - 1) == 0:
            logger.error(
                "the controller failed and %s (%d times at this line)",
                self._outcome,
                number,
                exc_info=error,
            )


def origin(traceback: TracebackType | None) -> tuple[str, int]:
    """File and line that raised."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "", 0
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
