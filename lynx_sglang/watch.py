"""``lynx-sglang watch``: a server's state in the terminal, read anew every second.

A frame is made from two readings of ``/server_info``: what ran between them, and the state at the
second one.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lynx_controller import Reason
from lynx_sglang import connection
from lynx_sglang.connection import Connection, ConnectionFailed
from lynx_sglang.settings import describe_slo

INTERVAL_S = 1.0
GOOD, WARNING, BAD, PLAIN = "green", "yellow", "bold red", ""
REASONS = {
    Reason.FULL: "full quality fits",
    Reason.FEED_FORWARD: "the cost model moved the caps",
    Reason.FEEDBACK: "the measured gaps moved the caps",
    Reason.HOLD: "the last caps still fit",
    Reason.QUEUE: "requests wait for a place, steps must be faster",
    Reason.SATURATED: "the quality floor is reached",
    Reason.OUTSIDE: "time is lost outside the experts",
    Reason.GUARD: "the quality limit stops a deeper cut",
    Reason.FROZEN: "the last step tells nothing, the decision before it stands",
    Reason.BLIND: "steps could not be read, full quality",
    Reason.OVERRIDE: "fixed by the operator",
    Reason.FAILED: "the controller failed, full quality",
}


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    text: str
    style: str = PLAIN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    connection.add_arguments(parser)
    parser.add_argument(
        "--once", action="store_true",
        help="print one frame, of one second, and end: 1 where no server with Lynx answers",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """0 when told to end; with ``--once``, 1 where no server with Lynx answers."""
    try:
        server = Connection.of(args)
        if args.once:
            before = server.lynx_parts()
            time.sleep(INTERVAL_S)
            Console().print(frame(server.url, before, server.lynx_parts()), soft_wrap=True)
        else:
            with suppress(KeyboardInterrupt):
                follow(server, Console())
    except ConnectionFailed as error:
        print(f"lynx-sglang: {error}", file=sys.stderr)
        return 1
    return 0


def follow(server: Connection, console: Console) -> NoReturn:
    """Show frames until interrupted; without a terminal, one after the other."""
    before: list[dict[str, Any]] | None = None
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            try:
                after = server.lynx_parts()
                shown = frame(server.url, before or after, after)
                before = after
            except ConnectionFailed as error:
                before, shown = None, gone(server.url, str(error))
            if console.is_terminal:
                live.update(shown, refresh=True)
            else:
                console.print(shown, soft_wrap=True)
            time.sleep(INTERVAL_S)


def gone(url: str, why: str) -> Text:
    return Text.assemble(
        (f"{url}  {time.strftime('%H:%M:%S')}\n", "bold"),
        (why, BAD),
        "\nAsked again every second; Ctrl-C ends.",
    )


def frame(url: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Text:
    """The state of each scheduler, below the server's address."""
    if len(before) != len(after) or any(
        new["decode_steps"] < old["decode_steps"] for old, new in zip(before, after, strict=True)
    ):
        before = after  # it has started anew
    shown = Text.assemble((f"{url}  {time.strftime('%H:%M:%S')}", "bold"))
    for old, new in zip(before, after, strict=True):
        for line in lines(old, new):
            shown.append(f"\n{line.label:<9}", "dim")
            shown.append(line.text, line.style)
    return shown


def lines(before: dict[str, Any], after: dict[str, Any]) -> list[Line]:
    """One scheduler's state, from two readings of its part of ``/server_info``."""
    if after["decision"] is None or after["controller"] is None:
        return [Line("state", "no step has run yet")]
    steps = after["decode_steps"] - before["decode_steps"]
    decision = after["decision"]
    reason = Reason(decision["reason"])
    share = f"{decision['share']:.0%} of the experts: {REASONS[reason]}"
    if after["is_idle"]:
        share = f"last {share}"
    return [
        latency(after),
        Line("experts", experts(before, after, steps)),
        Line("requests", requests(before, after)),
        Line("share", share, PLAIN if decision["share"] == 1.0 else WARNING),
        Line("mass", mass(before, after, steps)),
        Line("quality", quality(after)),
        state(after),
    ]


def latency(after: dict[str, Any]) -> Line:
    """The percentile of the latest gaps against its limit."""
    set_to, measured_ms = after["settings"], after["controller"]["windowed_itl_ms"]
    limit_ms = set_to["slo_itl_ms"]
    seen = "no gap yet" if measured_ms is None else f"{measured_ms:.1f} ms"
    text = f"p{set_to['slo_percentile']:g} {seen}, {describe_slo(set_to)}"
    if measured_ms is None or limit_ms is None:
        return Line("ITL", text)
    return Line("ITL", text, GOOD if measured_ms <= limit_ms else BAD)


def experts(before: dict[str, Any], after: dict[str, Any], steps: int) -> str:
    """Active experts of a layer against those that the batch would use uncapped."""
    of = f"of {after['num_experts']} in a layer"
    if not steps:
        return f"none active {of}"
    active = (after["active_experts_sum"] - before["active_experts_sum"]) / steps
    decision = after["decision"]
    expected = sum(decision["expected_active"]) / after["num_layers"]
    uncapped = expected / decision["share"] if decision["share"] else expected
    cap = sum(decision["budget"]) / after["num_layers"]
    capped = "no cap" if cap >= after["num_experts"] else f"cap {cap:.1f}"
    return f"{active:.1f} active, {uncapped:.1f} expected uncapped, {of}; {capped}"


def requests(before: dict[str, Any], after: dict[str, Any]) -> str:
    shares = ", ".join(
        f"{tiers['requests'] - before['tiers'][name]['requests']} {name}"
        for name, tiers in after["tiers"].items()
    )
    return f"{after['running']} running, {after['waiting']} waiting; finished: {shares}"


def mass(before: dict[str, Any], after: dict[str, Any], steps: int) -> str:
    limit = f"limit {after['settings']['min_retained_mass']:g}"
    if not steps:
        return f"nothing decoded; {limit}"
    kept = (after["retained_mass_sum"] - before["retained_mass_sum"]) / steps
    old, new = before["tiers"]["flexible"], after["tiers"]["flexible"]
    tokens = new["decode_tokens"] - old["decode_tokens"]
    cut = (new["degraded_tokens"] - old["degraded_tokens"]) / tokens if tokens else 0.0
    return f"{kept:.1%} retained, {limit}; {cut:.0%} of flexible tokens cut"


def quality(after: dict[str, Any]) -> str:
    """KL to the full model, as shadow passes have measured it since the start."""
    shadow, limit = after["shadow"], after["settings"]["max_quality_loss"]
    limited = "no limit" if limit is None else f"limit {limit:g} nats"
    if not shadow["rows"]:
        return f"KL not measured yet; {limited}"
    return (
        f"KL {shadow['kl_mean']:.2e} nats a token over {shadow['rows']} tokens, "
        f"top token alike in {shadow['agreement']:.1%}; {limited}"
    )


def state(after: dict[str, Any]) -> Line:
    """Does it keep its limits; if not, what to do."""
    decision, set_to = after["decision"], after["settings"]
    reason = Reason(decision["reason"])
    slo = describe_slo(set_to)
    if after["is_idle"]:
        return Line("state", "idle: nothing runs or waits")
    if reason is Reason.FAILED:
        return Line("state", "the controller failed: see the server's log, report it", BAD)
    if reason is Reason.BLIND:
        return Line("state", "steps cannot be read, so nothing is cut: report it", BAD)
    if reason is Reason.GUARD:
        limit = f"cannot hold {slo} within {set_to['max_quality_loss']:g} nats a token"
        return Line("state", f"{limit}: lower the load, add replicas, or loosen a limit", BAD)
    if decision["saturated"]:
        limit = f"cannot hold {slo} at this quality floor"
        return Line("state", f"{limit}: lower the load, add replicas, or loosen a limit", BAD)
    if reason is Reason.OUTSIDE:
        return Line("state", "time is lost outside the experts: look at prefill and the host", BAD)
    if reason is Reason.OVERRIDE:
        return Line("state", "an operator fixed the cut: no limit steers it", WARNING)
    if slo == "no SLO":
        return Line("state", "full quality: no SLO is set", GOOD)
    return Line("state", f"holds its limits ({slo})", GOOD)
