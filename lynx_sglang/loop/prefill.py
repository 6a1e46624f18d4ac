"""Prefill paced by the SLO: what a prefill step computed, and the scheduler's own two numbers.

SGLang's scheduler reads ``chunked_prefill_size`` whenever it builds a prefill, and after one it
runs ``prefill_decode_interval`` decode steps. Pacing sets these numbers, with what is left of the
interval, and nothing else of its policy.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from lynx_controller import Bounds, Pace, Pacer
from lynx_controller.decide.pacing import Rule
from lynx_sglang.errors import LynxError

LEAST_TOKENS = 32  # of a chunk: below, a step's fixed cost is nearly all of it


@dataclass(frozen=True, slots=True)
class Prefill:
    """The prompts' side of a prefill step."""

    tokens: int
    prefix: int  # tokens before each of them, on average
    end: int  # of the longest prompt: where its next chunk begins

    @classmethod
    def of(cls, batch: Any) -> Prefill:
        pairs = list(zip(batch.prefix_lens, batch.extend_lens, strict=True))
        tokens = sum(extend for _, extend in pairs)
        before = sum(extend * (prefix + extend / 2) for prefix, extend in pairs)
        return cls(tokens, int(before / max(tokens, 1)), max(map(sum, pairs), default=0))


class Pacing:
    """One scheduler's pacer; ``is_on``: its decisions are put in force."""

    def __init__(self, scheduler: Any, *, is_on: bool) -> None:
        """
        Raises:
            LynxError: the scheduler does not cut prompts into chunks.
        """
        self._scheduler, self.is_on = scheduler, is_on
        self._chunk, self._interval = (
            scheduler.chunked_prefill_size,
            scheduler.prefill_decode_interval,
        )
        self._is_held = False
        self.pacer = Pacer(bounds_of(scheduler))
        if is_on:  # a batch without decode rows waits for nothing
            least_rows = max(1, scheduler.prefill_decode_interval_min_bs)
            scheduler.prefill_decode_interval_min_bs = least_rows

    def prefix(self, last: Prefill | None) -> int:
        """Tokens before the next chunk's: those of a prompt that is not done, else 0."""
        return 0 if last is None or self._scheduler.chunked_req is None else last.end

    def wait_ms(self) -> float:
        """Of the oldest request that waits or is partly prefilled; 0 without any."""
        scheduler = self._scheduler
        partly = [] if scheduler.chunked_req is None else [scheduler.chunked_req]
        waiting = [*scheduler.waiting_queue, *partly]
        since_s = [request.time_stats.wait_queue_entry_time for request in waiting]
        return max(0.0, time.perf_counter() - min(since_s)) * 1e3 if since_s else 0.0

    def put_in_force(self, pace: Pace) -> None:
        """Set the scheduler's numbers; its own again where the pace is its own."""
        if not self.is_on:
            return
        scheduler = self._scheduler
        if pace.interval:
            scheduler.chunked_prefill_size = pace.chunk_tokens
            scheduler.prefill_decode_interval = max(pace.interval, self._interval)
            if pace.rule is Rule.WAIT:
                scheduler._prefill_decode_interval_remaining = pace.interval
        elif self._is_held:
            scheduler.chunked_prefill_size = self._chunk
            scheduler.prefill_decode_interval = self._interval
            scheduler._prefill_decode_interval_remaining = 0
        self._is_held = pace.interval > 0


def bounds_of(scheduler: Any) -> Bounds:
    """Least and largest chunk; both are whole pages, as the scheduler cuts them."""
    most = scheduler.chunked_prefill_size
    if most is None:
        raise LynxError(
            "--lynx-prefill-pacing paces chunks, and this server prefills prompts whole. "
            "Set --chunked-prefill-size, or --lynx-prefill-pacing off."
        )
    page = math.lcm(scheduler.page_size, scheduler.truncation_align_size or 1)
    most = page * (most // page)
    if not most:
        raise LynxError(
            f"--lynx-prefill-pacing needs a chunk of at least {page} tokens, "
            f"got --chunked-prefill-size {scheduler.chunked_prefill_size}"
        )
    return Bounds(min(page * -(-LEAST_TOKENS // page), most), most, page)
