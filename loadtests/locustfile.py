"""Open-loop load on any OpenAI-compatible server, every token gap timed, every answer checked.

    locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:30000 \
        --shape 20x1,60x6,20x1 --slo-itl-ms 20 --out build/load

Writes ``requests.jsonl`` (raw gaps and answers) and ``summary.json`` under ``--out``. Exit code 0
when no request failed and the SLO was attained. Locust's own ``-u``, ``-r`` and ``-t`` have no say
in the load: arrivals are drawn from ``--shape`` and ``--seed`` and wait for nobody.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Group
from locust import User, events
from locust.runners import LocalRunner

from loadtests.pacer import Pacer
from loadtests.record import Record, answered, write
from loadtests.shapes import Shape
from loadtests.stream import Chunk, Client, Exchange, StreamError
from loadtests.summary import faults, summarise
from loadtests.workload import MAX_TOKENS, check, questions

logger = logging.getLogger(__name__)

NAME = "/v1/chat/completions"
GOOD_ENDS = ("stop", "length")


def add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    add = group.add_argument
    add("--shape", default="10x1,30x4,10x1", help="SECONDSxRATE,... requests per second")
    add("--seed", type=int, default=0, help="of arrivals and problems")
    add("--split", default="test", help="of the problems: train, validation or test")
    add("--max-tokens", type=int, default=MAX_TOKENS, help="per answer")
    add("--served-model", default="default", help="model name in the requests")
    add("--extra-body", type=json.loads, default={}, help="JSON object merged into each request")
    add("--slo-itl-ms", type=float, default=None, help="inter-token latency to attain, ms")
    add("--slo-attainment", type=float, default=0.95, help="share of tokens within the SLO")
    add("--drain-s", type=float, default=60.0, help="time for the last answers after the shape")
    add("--out", type=Path, default=Path("build/load"), help="folder for records and summary")


class Load:
    """One run of a shape against a server."""

    def __init__(self, environment: Any) -> None:
        options = environment.parsed_options
        self.environment, self.options = environment, options
        self.shape = Shape.parse(options.shape)
        arrivals_s = list(self.shape.arrivals_s(options.seed))
        self.questions = questions(len(arrivals_s), seed=options.seed, split=options.split)
        self.pacer = Pacer(arrivals_s, sleep=gevent.sleep)
        self.client = Client(environment.host, model=options.served_model)
        self.records: dict[int, Record] = {}
        self.origin_s = 0.0
        self.began_at = 0.0  # epoch, to line up with other logs

    def run(self) -> None:
        group = Group()
        self.origin_s, self.began_at = time.perf_counter(), time.time()
        self.pacer.run(lambda index, due_s: group.spawn(self.ask, index, due_s))
        group.join(timeout=self.options.drain_s)

    def ask(self, index: int, due_s: float) -> None:
        """Send one request and record it, whatever happens to it."""
        question = self.questions[index]
        began_s = time.perf_counter()
        sent_s = began_s - self.origin_s
        record = Record(
            index, question.task, question.index, due_s, sent_s, end_s=sent_s, error="unfinished"
        )
        self.records[index] = record
        failure: Exception | None = None
        try:
            exchange = self.client.stream(
                question.problem.prompt,
                max_tokens=self.options.max_tokens,
                options=self.options.extra_body,
                on_chunk=self.on_chunk,
            )
            if exchange.finish_reason not in GOOD_ENDS:
                raise StreamError(f"finish_reason {exchange.finish_reason}")
            record = replace(answered(record, exchange, self.origin_s), error=None)
        except (StreamError, OSError, http.client.HTTPException, ValueError) as error:
            failure = error
            end_s = time.perf_counter() - self.origin_s
            record = replace(record, end_s=end_s, error=f"{type(error).__name__}: {error}")
        self.records[index] = record
        self.fire("POST", NAME, (time.perf_counter() - began_s) * 1e3, len(record.text), failure)

    def on_chunk(self, exchange: Exchange, chunk: Chunk) -> None:
        """Tell Locust of a token as it arrives."""
        if len(exchange.chunks) == 1:
            self.fire("METRIC", "TTFT", (chunk.at_s - exchange.sent_s) * 1e3, chunk.tokens)
            return
        before = exchange.chunks[-2]
        for _ in range(chunk.tokens):
            self.fire("METRIC", "ITL", (chunk.at_s - before.at_s) * 1e3 / chunk.tokens, 1)

    def fire(
        self, kind: str, name: str, time_ms: float, size: int, failure: Exception | None = None
    ) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=time_ms,
            response_length=size,
            exception=failure,
            context={},
        )

    def finish(self) -> None:
        """Check the answers, write both files, set the exit code."""
        options, punctuality = self.options, self.pacer.punctuality()
        records = check([self.records[key] for key in sorted(self.records)], self.questions)
        summary = summarise(
            records, slo_itl_ms=options.slo_itl_ms, slo_attainment=options.slo_attainment
        )
        summary |= {
            "shape": str(self.shape),
            "seed": options.seed,
            "began_at": self.began_at,
            "client": {"kept_up": punctuality.is_kept, "punctuality": str(punctuality)},
        }
        options.out.mkdir(parents=True, exist_ok=True)
        write(options.out / "requests.jsonl", records)
        (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        (logger.info if punctuality.is_kept else logger.warning)("%s", punctuality)
        reasons = faults(summary)
        for reason in reasons:
            logger.error("%s", reason)
        self.environment.process_exit_code = 1 if reasons else 0


def pace(user: Any) -> None:
    """The whole run: Locust's one user only paces; each arrival has a greenlet of its own."""
    user.environment.load.run()
    gevent.spawn(user.environment.runner.quit)
    gevent.sleep(user.environment.parsed_options.drain_s)  # quit ends this greenlet


class OpenLoop(User):  # type: ignore[misc]
    fixed_count = 1
    tasks = (pace,)


def refuse_distributed(runner: Any, **_: Any) -> None:
    if not isinstance(runner, LocalRunner):
        raise SystemExit("this load runs in one process: start it without --master and --worker")


def begin(environment: Any, **_: Any) -> None:
    environment.load = Load(environment)


def end(environment: Any, **_: Any) -> None:
    if load := getattr(environment, "load", None):
        load.finish()


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(refuse_distributed)
events.test_start.add_listener(begin)
events.quitting.add_listener(end)
