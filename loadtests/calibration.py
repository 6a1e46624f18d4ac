"""Times of a plain server on this machine; the demo derives its SLO and its load from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.percentile import percentile
from loadtests.record import gaps_of
from loadtests.stream import Client, Exchange
from loadtests.summary import itls_ms
from loadtests.workload import MAX_TOKENS, questions

# The validation split: test problems are for measuring accuracy alone.
SPLIT, POOL, SEED = "validation", 200, 1


@dataclass(frozen=True, slots=True)
class Pace:
    """A closed loop of some streams: their inter-token latency and how many answers a second."""

    streams: int
    itl_p50_ms: float
    itl_p95_ms: float
    answers_per_s: float
    tokens_per_s: float

    @classmethod
    def of(cls, streams: int, exchanges: Sequence[Exchange], began_s: float, ends_s: float) -> Pace:
        """Of what arrived by ``ends_s``: afterwards fewer and fewer streams run."""
        gaps = [gap for each in exchanges for gap in gaps_of(each, 0.0) if gap.at_s <= ends_s]
        latencies = itls_ms(gaps)
        if not latencies:
            raise RuntimeError(f"no token arrived within {ends_s - began_s:g} s")
        tokens_per_s = len(latencies) / (ends_s - began_s)
        tokens_per_answer = sum(each.completion_tokens for each in exchanges) / len(exchanges)
        return cls(
            streams=streams,
            itl_p50_ms=percentile(latencies, 50),
            itl_p95_ms=percentile(latencies, 95),
            answers_per_s=tokens_per_s / tokens_per_answer,
            tokens_per_s=tokens_per_s,
        )


def measure(url: str, streams: int, duration_s: float) -> Pace:
    """Keep ``streams`` requests running for ``duration_s`` and time them."""
    client = Client(url)
    asked = [question.problem.prompt for question in questions(POOL, seed=SEED, split=SPLIT)]
    began_s = time.perf_counter()
    ends_s = began_s + duration_s
    finished: list[Exchange] = []
    failures: list[BaseException] = []

    def keep_asking(turn: int) -> None:
        try:
            while time.perf_counter() < ends_s:
                finished.append(client.stream(asked[turn % POOL], max_tokens=MAX_TOKENS))
                turn += streams
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=keep_asking, args=(turn,)) for turn in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"calibration failed: {failures[0]}") from failures[0]
    return Pace.of(streams, finished, began_s, ends_s)
