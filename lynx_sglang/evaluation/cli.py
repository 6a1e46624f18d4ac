"""The options of ``lynx-sglang eval``, and its exit codes."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lynx_sglang import connection
from lynx_sglang.errors import LynxError
from lynx_sglang.evaluation import picture, problems
from lynx_sglang.evaluation.journal import Journal
from lynx_sglang.evaluation.point import points_of
from lynx_sglang.evaluation.report import report, table
from lynx_sglang.evaluation.server import EvaluationError, Server
from lynx_sglang.evaluation.session import Plan, manifest, measure

INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    connection.add_arguments(parser)
    add(
        "--shares",
        default="75%,50%,30%",
        help="shares of what a step would use, split over the layers as an SLO's cuts are "
        "(default %(default)s)",
    )
    add(
        "--budgets",
        default="full",
        help="caps to measure, the same for every layer: full,50%%,12 (default %(default)s)",
    )
    add("--demands", default="", help="demands to measure, each without a cap: 0.9,0.7")
    add("--concurrency", default="4,8,16", help="requests at a time (default %(default)s)")
    add(
        "--problems",
        action="append",
        metavar="SET",
        help="bundled, gsm8k=FILE or humaneval=FILE; may be repeated (default bundled)",
    )
    add("--count", type=int, default=100, help="problems of each set (default %(default)s)")
    add("--max-tokens", type=int, default=512, help="of an answer (default %(default)s)")
    add("--alone", type=int, default=16, help="problems of each set also asked one at a time")
    add("--out", type=Path, required=True, help="folder of rows, report.json and frontier.png")


def main(args: argparse.Namespace) -> int:
    """0 when measured, 1 when it cannot be, 130 when interrupted."""
    try:
        plan = plan_of(args)
        return asyncio.run(evaluate(connection.Connection.of(args), plan, args.out))
    except LynxError as error:
        print(f"lynx-sglang eval: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print(
            "lynx-sglang eval: interrupted; the server is as it was. "
            "The same command goes on from here.",
            file=sys.stderr,
        )
        return INTERRUPTED


def plan_of(args: argparse.Namespace) -> Plan:
    """Raises: LynxError: an option is out of its range; names it and what it got."""
    for name, least in (("count", 1), ("max_tokens", 2), ("alone", 0)):
        if getattr(args, name) < least:
            flag = "--" + name.replace("_", "-")
            raise EvaluationError(f"{flag}: expected {least} or more, got {getattr(args, name)}")
    try:
        streams = tuple(dict.fromkeys(int(word) for word in args.concurrency.split(",")))
    except ValueError:
        streams = ()
    if not streams or min(streams) < 1:
        raise EvaluationError(
            f"--concurrency: expected whole numbers of at least 1, got {args.concurrency!r}"
        )
    points = tuple(points_of(shares=args.shares, budgets=args.budgets, demands=args.demands))
    if not points:
        raise EvaluationError("--shares, --budgets, --demands: nothing to measure")
    asked = [problems.load(spec, args.count) for spec in args.problems or ["bundled"]]
    return Plan(
        points=points,
        concurrency=streams,
        problems=tuple(problem for one in asked for problem in one),
        max_tokens=args.max_tokens,
        alone=min(args.alone, args.count),
    )


async def evaluate(address: connection.Connection, plan: Plan, out: Path) -> int:
    """Measure, write the report and the picture, print the table."""
    cancel_on_signal()
    async with Server(address) as server:
        info = await server.info()
        tokenizer = load_tokenizer(info["tokenizer_path"])
        journal = await measure(server, plan, out, tokenizer)
    show(plan, journal, manifest(plan, info), out)
    return 0


def cancel_on_signal() -> None:
    """SIGINT and SIGTERM cancel the task that calls this, once: restoring is not cut short."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def stop() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def show(plan: Plan, journal: Journal, measured: dict[str, Any], out: Path) -> None:
    made = report(plan, journal, measured)
    (out / "report.json").write_text(json.dumps(made, indent=2) + "\n")
    print(table(made))
    if not any(leg["shadow_rows"] for leg in made["legs"]):
        print("no step KL: the server made no shadow passes (--lynx-shadow-share)")
    try:
        picture.draw(made, out / "frontier.png")
    except ModuleNotFoundError as error:
        print(f"no frontier.png: {error} (pip install 'lynx-sglang[eval]')")
    with suppress(ValueError):
        out = out.resolve().relative_to(Path.cwd())
    print(f"written: {out}")


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"the server's tokenizer {path} cannot be read here: {error}"
        ) from error
