"""The ``lynx-sglang`` command: is this installation sound, and what is a server doing."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from lynx_controller.fleet import refit
from lynx_controller.log import replay
from lynx_sglang import (
    connection,
    launch_line,
    settings,
    sglang_contract,
    sglang_names,
    steer,
    watch,
)
from lynx_sglang.calibrate import measure
from lynx_sglang.cpu import entry_point
from lynx_sglang.errors import LynxError
from lynx_sglang.evaluation import cli as evaluation
from lynx_sglang.integration import features
from lynx_sglang.sglang_source import Source


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; 0 when all is well, 1 when something is not."""
    parser = argparse.ArgumentParser(prog="lynx-sglang", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser(
        "check", help="check this installation, or whether a launch line would be served"
    )
    launch_line.add_arguments(check)
    check.add_argument(
        "--against", type=Path, metavar="WHEEL",
        help="compare another SGLang instead, a wheel or an unpacked one: names that are gone or "
        "moved, parameters, attributes; 1 where one that lynx relies on is missing",
    )  # fmt: skip
    check.set_defaults(run=run_check)

    options = commands.add_parser("settings", help="list every setting, its range and default")
    options.set_defaults(run=lambda _args: run_settings())

    status = commands.add_parser("status", help="show what a running server's controller does")
    connection.add_arguments(status)
    status.add_argument("--json", action="store_true", help="print the whole state as JSON")
    status.set_defaults(run=run_status)

    view = commands.add_parser("watch", help="watch a running server, refreshed every second")
    watch.add_arguments(view)
    view.set_defaults(run=watch.run)

    change = commands.add_parser("set", help="change settings of running servers, all or none")
    steer.add_arguments(change)
    change.set_defaults(run=steer.run)

    explain = commands.add_parser("replay", help="explain the decisions in a --lynx-decision-log")
    explain.add_argument("log", type=Path, help="file that the server wrote")
    explain.add_argument("--step", type=int, help="only this engine step's decisions")
    explain.set_defaults(run=lambda args: run_replay(args.log, args.step))

    job = commands.add_parser("fleet-refit", help="fit the replicas that share a --lynx-store")
    refit.add_arguments(job)
    job.set_defaults(run=run_refit)

    evaluate = commands.add_parser("eval", help="measure what a running server's answers lose")
    evaluation.add_arguments(evaluate)
    evaluate.set_defaults(run=evaluation.main)

    calibrate = commands.add_parser("calibrate", help="measure what cutting a model costs")
    measure.add_arguments(calibrate)
    calibrate.set_defaults(run=measure.main)

    args = parser.parse_args(argv)
    code: int = args.run(args)
    return code


def run_check(args: argparse.Namespace) -> int:
    if args.line:
        return launch_line.run(args.line, args.gpu, args.online)
    if args.against is not None:
        return run_comparison(args.against)
    version = sglang_names.sglang_version()
    print(f"sglang {version}: {'supported' if sglang_names.is_supported() else 'NOT supported'}")
    print(f"platform: {'CPU (torch operators)' if entry_point.activate() else 'SGLang in-tree'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's own, about kernels that this machine lacks
        names = sglang_names.names_of(version)
        faults = [fault for name in names if (fault := name.fault())]
    for fault in faults:
        print(f"SGLang name does not fit: {fault}")
    print(f"SGLang names: {len(names) - len(faults)} of {len(names)} fit")
    return int(bool(faults) or not sglang_names.is_supported())


def run_comparison(path: Path) -> int:
    """1 for a path that is no SGLang, or one that lacks something that Lynx relies on."""
    try:
        source, known = Source(path), Source.installed()
    except (LynxError, OSError, SyntaxError) as error:
        print(f"lynx-sglang: {error}", file=sys.stderr)
        return 1
    is_known = source.version in sglang_names.SUPPORTED_VERSIONS
    print(f"sglang {source.version}: {'supported' if is_known else 'NOT supported'}")
    faults = list(sglang_contract.faults(source, features.fields()))
    for fault in faults:
        print(f"missing: {fault}")
    for change in sglang_contract.changes(source, known):
        print(f"changed since {known.version}: {change}")
    print(f"{len(faults)} missing that lynx relies on")
    return int(bool(faults))


def run_settings() -> int:
    for name, spec in settings.OPTIONS.items():
        print(f"{settings.flag_of(name)}  ({settings.variable_of(name)})")
        print(f"    {spec.metadata['about']}")
        print(f"    Takes {spec.metadata['allowed']}. Default: {spec.default}.")
    return 0


def run_status(args: argparse.Namespace) -> int:
    """1 where no server with Lynx answers."""
    try:
        server = connection.Connection.of(args)
        parts = server.lynx_parts()
    except LynxError as error:
        print(f"lynx-sglang: {error}", file=sys.stderr)
        return 1
    for part in parts:
        replica = (part.get("ranks") or {}).get("replica")
        if replica is not None and not args.json:
            print(f"replica {replica}")
        print(json.dumps(part, indent=2) if args.json else describe(part))
    return 0


def run_replay(path: Path, step: int | None) -> int:
    """1 for a file that is no log, a step it does not have, or another decision than recorded."""
    try:
        _calls, differences = replay.show(path, step=step)
    except (OSError, ValueError) as error:
        print(f"lynx-sglang: {path}: {error}", file=sys.stderr)
        return 1
    return int(differences > 0)


def run_refit(args: argparse.Namespace) -> int:
    refit.run(args.store, args.every)
    return 0


def describe(part: dict[str, Any]) -> str:
    """A server's ``lynx`` part of ``/server_info`` as a few lines of text."""
    decision, steps = part["decision"], max(part["decode_steps"], 1)
    set_to, shadow = part["settings"], part["shadow"]
    lines = [f"policy {set_to['policy']}, {settings.describe_slo(set_to)}"]
    if decision is None:
        return "\n".join([*lines, "now: no step has run yet"])
    budget = sum(decision["budget"]) / part["num_layers"]
    waited = ""
    if set_to["slo_ttft_ms"] is not None and part["controller"] is not None:
        waited = f", requests wait {part['controller']['queue_ms'] / 1e3:.1f} s for a place"
    when = "idle; last batch" if part.get("is_idle") else "now"
    lines += [
        f"{when}: cap {budget:.1f} of {part['num_experts']} experts, "
        f"share {decision['share']:.3f}, demand {decision['demand']:.3f}, "
        f"{decision['reason']}{', saturated' if decision['saturated'] else ''}, "
        f"predicted {decision['predicted_ms']:.1f} ms{waited}",
        f"since start: {part['decode_steps']} decode steps, "
        f"{part['active_experts_sum'] / steps:.1f} active experts, "
        f"{part['retained_mass_sum'] / steps:.4f} retained mass",
    ]
    if shadow["rows"]:
        lines.append(
            f"shadow passes: {shadow['steps']} steps, KL {shadow['kl_mean']:.2e} nats a token "
            f"(p99 {shadow['kl_p99']:.2g}), top-1 agreement {shadow['agreement']:.4f}"
        )
    return "\n".join([*lines, f"decisions: {part['decisions']}"])
