"""A small serving engine in front of the plant: requests, continuous batching, chunked prefill.

Discrete-event: the clock jumps from step to step, and over idle times. Deterministic by the plant's
seed and the requests. Decode rows are the running streams; KV grows by a token per row and step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from benchmarks.plant.simulator import Load, Plant, Sample, Setting
from lynx_controller import Observation, Pace
from lynx_controller.decide.pacing import Rule


@dataclass(frozen=True, slots=True)
class Request:
    at_ms: float
    prompt: int  # tokens
    output: int  # tokens, at least 1


@dataclass(slots=True)
class Stream:
    """A request being served."""

    request: Request
    to_prefill: int
    produced: int = 0
    first_ms: float = 0.0
    last_ms: float = 0.0

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first; None for a single token."""
        if self.produced < 2:
            return None
        return (self.last_ms - self.first_ms) / (self.produced - 1)


class Policy(Protocol):
    """A policy in control: it observes each decode step and decides where the rows change."""

    def __call__(self, seen: Observation) -> Setting: ...

    def plan(self, rows: int) -> Setting | None: ...


class Pacing(Protocol):
    """A pacer of prefill: it observes each prefill step, and sets the pace before each step."""

    def prefilled(self, tokens: int, ms: float) -> None: ...

    def pace(self, rows: int) -> Pace: ...


@dataclass(slots=True)
class Served:
    """The record of a run."""

    samples: list[Sample] = field(default_factory=list)  # one per decode or mixed step
    tpots_ms: list[float] = field(default_factory=list)  # one per finished request
    ttfts_ms: list[float] = field(default_factory=list)
    clock_ms: float = 0.0


def serve(
    plant: Plant,
    policy: Policy,
    requests: Iterable[Request],
    max_rows: int = 64,
    chunk_tokens: int = 512,
    is_mixed: bool = False,
    pacing: Pacing | None = None,
) -> Served:
    """Run all requests to their end.

    Up to `chunk_tokens` of waiting prompts are prefilled per step: in a step of their own while the
    streams wait, as SGLang does by default, or together with the decode rows (`is_mixed`).
    `pacing` sets the tokens of the next chunk, and the decode steps between two prefills.
    """
    coming = deque(sorted(requests, key=lambda each: each.at_ms))
    waiting: deque[Stream] = deque()
    running: list[Stream] = []
    served = Served()
    full: Setting = (1.0, (plant.num_experts,) * plant.num_layers)
    setting, rows_before, now_ms, lost_ms = full, 0, 0.0, 0.0
    deferred = 0  # decode steps until the next prefill
    while coming or waiting or running:
        if not waiting and not running and coming[0].at_ms > now_ms:
            now_ms, lost_ms = coming[0].at_ms, 0.0
        while coming and coming[0].at_ms <= now_ms:
            waiting.append(Stream(coming[0], coming[0].prompt))
            coming.popleft()
        pace = pacing.pace(len(running)) if pacing else Pace(chunk_tokens, 0, Rule.UNPACED)
        tokens, ready = 0, list[Stream]()
        if pace.rule is Rule.WAIT:
            deferred = pace.interval
        if deferred and running:
            deferred -= 1
        else:
            tokens, ready = take_chunk(waiting, pace.chunk_tokens, max_rows - len(running))
            deferred = pace.interval if tokens else 0
        if tokens and (not running or not is_mixed):
            step_ms = plant.step_ms(0, plant.num_layers * plant.uncapped(tokens))
            step_ms += plant.token_ms * tokens
            if pacing:
                pacing.prefilled(tokens, step_ms)
            now_ms += step_ms
            lost_ms += step_ms if running else 0.0
        elif running:
            rows = len(running)
            if rows != rows_before:
                setting = policy.plan(rows) or setting
            rows_before = rows
            kv_ktokens = 1e-3 * sum(each.request.prompt + each.produced for each in running)
            load = Load(rows, lost_ms, prefill_tokens=tokens, kv_ktokens=kv_ktokens)
            observation, sample = plant.run(load, setting)
            now_ms, lost_ms = now_ms + observation.step_ms, 0.0
            observation = replace(
                observation,
                demand=setting[0],
                budget_applied=setting[1],
                queue=len(waiting),
                queue_ms=now_ms - waiting[0].request.at_ms if waiting else 0.0,
            )
            served.samples.append(sample)
            setting = policy(observation)
            for stream in running:
                stream.produced += 1
                stream.last_ms = now_ms
            running = retire(running, served)
        for stream in ready:
            stream.produced, stream.first_ms, stream.last_ms = 1, now_ms, now_ms
            served.ttfts_ms.append(now_ms - stream.request.at_ms)
        running += [each for each in ready if each.request.output > 1]
    served.clock_ms = now_ms
    return served


def take_chunk(waiting: deque[Stream], budget: int, places: int) -> tuple[int, list[Stream]]:
    """Tokens prefilled now, and the streams whose prompt is done with them."""
    tokens, ready = 0, list[Stream]()
    while waiting and tokens < budget and len(ready) < places:
        stream = waiting[0]
        part = min(stream.to_prefill, budget - tokens)
        stream.to_prefill -= part
        tokens += part
        if stream.to_prefill:
            break
        ready.append(waiting.popleft())
    return tokens, ready


def retire(running: list[Stream], served: Served) -> list[Stream]:
    """Drop the finished streams, and note what they saw."""
    left = []
    for stream in running:
        if stream.produced < stream.request.output:
            left.append(stream)
        elif stream.tpot_ms is not None:
            served.tpots_ms.append(stream.tpot_ms)
    return left
