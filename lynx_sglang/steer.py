"""``lynx-sglang set``: change the settings of one or several running servers, all or none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lynx_sglang import connection
from lynx_sglang.connection import Connection, ConnectionFailed
from lynx_sglang.errors import LynxError, SettingError
from lynx_sglang.loop import changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    connection.add_arguments(parser, is_several=True)
    parser.add_argument(
        "entries",
        nargs="+",
        metavar="NAME=VALUE",
        help="such as slo-itl-ms=25, budget=auto or max-quality-loss=none; can change: "
        + ", ".join(spelled(name) for name in changes.UPDATABLE),
    )


def run(args: argparse.Namespace) -> int:
    """1 where no server was changed; the reason is on stderr."""
    try:
        asked = parsed(args.entries)
        servers = [Connection.of(args, url) for url in args.url or [connection.DEFAULT_URL]]
        before = {server: settings_of(server, asked) for server in servers}
        change(servers, asked, before)
        for server in servers:
            print(f"{server.url}: {described(before[server], settings_of(server, asked))}")
    except LynxError as error:
        print(f"lynx-sglang: {error}", file=sys.stderr)
        return 1
    return 0


def parsed(entries: Sequence[str]) -> dict[str, Any]:
    """Settings by name.

    Raises:
        SettingError: names the entry, its range and what it got.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        key = changes.PREFIX + name.strip().removeprefix("--lynx-").replace("-", "_")
        if not equals:
            raise SettingError(f"{entry}: expected NAME=VALUE, such as slo-itl-ms=25")
        setting, parsed_value = changes.parsed_entry(key, value.strip())
        if setting in found:
            raise SettingError(f"{spelled(setting)}: given twice")
        found[setting] = parsed_value
    return found


def settings_of(server: Connection, names: Mapping[str, Any]) -> dict[str, Any]:
    """A server's present values of these settings.

    Raises:
        ConnectionFailed: no server with Lynx answers, or its replicas differ.
    """
    parts = [part["settings"] for part in server.lynx_parts()]
    found = [{name: part[name] for name in names} for part in parts]
    if any(each != found[0] for each in found):
        raise ConnectionFailed(f"{server.url}: its schedulers have different settings: {found}")
    return found[0]


def change(
    servers: Sequence[Connection],
    asked: Mapping[str, Any],
    before: Mapping[Connection, Mapping[str, Any]],
) -> None:
    """Change every server, or put back those that were changed.

    Raises:
        ConnectionFailed: a server did not take the settings, with its reason; and which servers
            could not be put back, if any.
    """
    for place, server in enumerate(servers):
        try:
            server.change(entries_of(asked))
        except ConnectionFailed as error:
            lost = []
            for changed in servers[:place]:
                try:
                    changed.change(entries_of(before[changed]))
                except ConnectionFailed as failed:
                    lost.append(str(failed))
            kept = "; no server is changed" if not lost else f"; NOT put back: {'; '.join(lost)}"
            raise ConnectionFailed(f"{error}{kept}") from None


def entries_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The body's entries that set these settings, in words where they have any."""
    return {
        changes.PREFIX + name: "none" if value is None else value for name, value in values.items()
    }


def described(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{spelled(name)} {shown(before[name])} -> {shown(after[name])}" for name in after
    )


def spelled(name: str) -> str:
    return name.replace("_", "-")


def shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
