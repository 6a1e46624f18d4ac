"""Loads the plugin as SGLang does, with one hook that fails; one forked process each.

Prints a line of JSON for each: the SGLang function, the exit status, what was said last.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from typing import Any

import torch
from sglang.srt import plugins
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.server_args import ServerArgs

from lynx_sglang import sglang_names
from lynx_sglang.settings import TRANSPORT_VARIABLE, Settings

LAUNCHER = [
    name.hook_path
    for name in (sglang_names.ADD_CLI_ARGS, sglang_names.FROM_CLI_ARGS, sglang_names.START)
]


def main() -> None:
    for module in ("lynx_sglang.cpu.runner", "lynx_sglang.gpu.runtime"):
        importlib.import_module(module)
    for name in sglang_names.names_of(
        sglang_names.sglang_version()
    ):  # all that is hooked, once, before the forks
        name.fault()
    for process in ("launcher", "cpu", "cuda"):
        is_server = process != "launcher"
        torch.cuda.is_available = lambda: process == "cuda"  # noqa: B023 - read in this round
        if is_server:
            os.environ[TRANSPORT_VARIABLE] = Settings().to_json()
        for target in ["", *(targets() if is_server else LAUNCHER)]:
            status, said = in_a_fork(target, is_server)
            line = {"process": process, "target": target, "status": status, "said": said}
            print(json.dumps(line), flush=True)


def targets() -> list[str]:
    """The functions that Lynx hooks in such a process, from one in which nothing fails."""
    status, said = in_a_fork("", is_server=True, report=lambda: "\n".join(HookRegistry._hooks))
    assert status == 0, said
    return re.findall(r"^sglang\.srt\.[\w.]+$", said, re.MULTILINE)  # beside SGLang's warnings


def in_a_fork(target: str, is_server: bool, report: Any = None) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as said:
        if (child := os.fork()) == 0:
            os.dup2(said.fileno(), 2)
            try:
                load(target)
                if not is_server:
                    parse()
                if report is not None:
                    os.write(2, f"\n{report()}".encode())
            except SystemExit as stop:
                os.write(2, str(stop).encode())
                os._exit(1)
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()


def load(failing: str) -> None:
    apply_target = HookRegistry._apply_target

    def fail(target: str, hooks: Any) -> None:
        if target == failing:
            raise AttributeError("gone")
        apply_target(target, hooks)

    HookRegistry._apply_target = fail
    plugins.load_plugins()


def parse() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    args = parser.parse_args(["--model-path", "m", "--moe-backend", "lynx"])
    ServerArgs.from_cli_args(args)
    if TRANSPORT_VARIABLE not in os.environ:
        raise RuntimeError("served without lynx")


if __name__ == "__main__":
    main()
