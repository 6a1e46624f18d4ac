"""How long a step took, and what gap the streams in it saw."""

from __future__ import annotations

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
        step_ms = itl_ms = (now_s - began_s) * 1e3
        self._end_s = now_s
        if streams:
            if has_previous and not self._streams.isdisjoint(streams):
                itl_ms = (now_s - self._decode_end_s) * 1e3
            self._streams, self._decode_end_s = frozenset(streams), now_s
        return step_ms, itl_ms
