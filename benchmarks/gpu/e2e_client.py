"""A constant batch on a real server: one streamed request among others, its gaps timed."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from loadtests.server import Server

PROMPT_TOKENS = 64
SETTLING_GAPS = 16  # the others' prefill falls into the first ones
DECODE_LINE = re.compile(r"Decode batch.*#running-req: (\d+).*graph: (True|False)")


@dataclass(frozen=True)
class Load:
    """A batch of `rows` requests that all decode while one of them is timed."""

    vocab_size: int
    gaps: int  # timed in a round
    rounds: int


@dataclass(frozen=True)
class Point:
    """The figures of a load's timed streams."""

    gaps_ms: list[list[float]]  # of each round
    graph_share: float | None  # of the decode steps that the server logged at this batch
    active_experts: float | None  # T, mean over layers and steps; None on plain SGLang
    retained_mass: float | None

    def row(self, rows: int) -> dict[str, Any]:
        """Medians over rounds, of per-round statistics."""
        p50s = [statistics.median(gaps) for gaps in self.gaps_ms]
        tpots = [statistics.fmean(gaps) for gaps in self.gaps_ms]
        pooled = sorted(gap for gaps in self.gaps_ms for gap in gaps)
        return {
            "batch": rows,
            "tpot_ms": round(statistics.median(tpots), 3),
            "itl_p50_ms": round(statistics.median(p50s), 3),
            "itl_p50_ms_of_rounds": [round(value, 3) for value in p50s],
            "itl_p95_ms": round(pooled[int(0.95 * (len(pooled) - 1))], 3),
            "bunched": round(share_bunched(pooled), 3),
            "tokens_per_s": round(rows * 1e3 / statistics.median(tpots), 1),
            "active_experts": self.active_experts,
            "retained_mass": self.retained_mass,
            "graph_share": self.graph_share,
        }


def share_bunched(gaps_ms: list[float]) -> float:
    """Tokens that arrived together with another: many, and the percentiles say little."""
    mean = statistics.fmean(gaps_ms)
    return sum(gap < 0.1 * mean for gap in gaps_ms) / len(gaps_ms)


def measure(server: Server, load: Load, rows: int) -> Point:
    """Rounds of `rows` running requests; the server's own counts come from the same time."""
    before, log_bytes = counts(server), server.log.stat().st_size
    gaps = [one_round(server, load, rows, seed) for seed in range(load.rounds)]
    after = counts(server)
    with server.log.open(errors="replace") as log:
        log.seek(log_bytes)
        lines = DECODE_LINE.findall(log.read())
    graphs = [is_graph == "True" for running, is_graph in lines if int(running) == rows]
    means: list[float | None] = [None, None]
    if before is not None and after is not None:
        steps, *sums = (b - a for a, b in zip(before, after, strict=True))
        means = [round(total / steps, 4) for total in sums]
    return Point(
        gaps_ms=gaps,
        graph_share=sum(graphs) / len(graphs) if graphs else None,
        active_experts=means[0],
        retained_mass=means[1],
    )


def change(server: Server, **values: float) -> None:
    body = {"server_args": {f"lynx_{name}": value for name, value in values.items()}}
    (is_taken,) = server.post("/set_internal_state", body)
    if not is_taken:
        raise RuntimeError(f"the server refused {body}")


def counts(server: Server) -> tuple[float, float, float] | None:
    part = server.lynx()
    if part is None:
        return None
    return part["decode_steps"], part["active_experts_sum"], part["retained_mass_sum"]


def one_round(server: Server, load: Load, rows: int, seed: int) -> list[float]:
    """Gaps in ms of one stream, in the company of rows - 1 longer answers."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, load.vocab_size, size=(rows, PROMPT_TOKENS)).tolist()
    tokens = 1 + SETTLING_GAPS + load.gaps
    failures: list[Exception] = []

    def accompany() -> None:
        try:
            server.post("/generate", request(prompts[1:], tokens + 2 * SETTLING_GAPS))
        except Exception as error:  # handed to the thread that measures
            failures.append(error)

    company = threading.Thread(target=accompany)
    if rows > 1:
        company.start()
    arrivals = list(stream(server, {**request(prompts[:1], tokens), "stream": True}))
    if rows > 1:
        company.join()
    if failures:
        raise failures[0]
    times_s = [at_s for at_s, count in arrivals for _ in range(count)]
    if len(times_s) != tokens:
        raise RuntimeError(f"expected {tokens} tokens, the stream brought {len(times_s)}")
    gaps = [(b - a) * 1e3 for a, b in itertools.pairwise(times_s)]
    return gaps[SETTLING_GAPS:]


def request(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    return {"input_ids": prompts, "sampling_params": params}


def stream(server: Server, body: dict[str, Any]) -> Iterator[tuple[float, int]]:
    """The arrival time and the number of tokens of each chunk."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    headers = {"Content-Type": "application/json"}
    seen = 0
    try:
        connection.request("POST", "/generate", json.dumps(body).encode(), headers)
        for line in connection.getresponse():
            at_s = time.perf_counter()
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            total = event["meta_info"]["completion_tokens"]
            if total > seen:
                yield at_s, total - seen
                seen = total
    finally:
        connection.close()
