"""Step times, and the gaps between tokens that streams see."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StepClock:
    """Times steps from the end of one forward to the end of the next.

    That interval holds scheduling and output processing too, as a stream's gap does, and it is
    the step's own whether or not SGLang overlaps scheduling with the forward.
    """

    def __init__(self) -> None:
        self._end_s: float | None = None  # of the previous forward
        self._decode_end_s = 0.0  # of the previous forward that decoded
        self._streams: frozenset[str] = frozenset()  # that decoded in it
        self._pauses: deque[tuple[float, float]] = deque(maxlen=8)

    def note_pause(self, start_s: float, end_s: float) -> None:
        """An operator held the engine: neither a step's time nor a stream's gap."""
        self._pauses.append((start_s, end_s))

    def end(
        self, now_s: float, launch_s: float, *, is_after_idle: bool, streams: Sequence[str]
    ) -> tuple[float, float]:
        """Note the end of a forward.

        Args:
            now_s, launch_s: end and launch of the forward, on one clock, in seconds.
            is_after_idle: the scheduler had nothing to run before this step.
            streams: ids of the requests that decoded a token.

        Returns:
            step_ms: time since the previous forward's end, or since the launch after idling.
            itl_ms: gap that the streams saw: since their previous decode, with any prefill in
                between; step_ms where none of them decoded before.
        """
        has_previous = self._end_s is not None and not is_after_idle
        began_s = self._end_s if has_previous and self._end_s is not None else launch_s
        step_ms = itl_ms = self._between_ms(began_s, now_s)
        self._end_s = now_s
        if streams:
            if has_previous and not self._streams.isdisjoint(streams):
                itl_ms = self._between_ms(self._decode_end_s, now_s)
            self._streams, self._decode_end_s = frozenset(streams), now_s
        return step_ms, itl_ms

    def _between_ms(self, start_s: float, end_s: float) -> float:
        paused_s = sum(
            max(0.0, min(end_s, until_s) - max(start_s, since_s))
            for since_s, until_s in self._pauses
        )
        return (end_s - start_s - paused_s) * 1e3
