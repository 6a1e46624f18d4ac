"""Would this launch line be served with Lynx? SGLang's own resolution says it, without a server."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

from lynx_kernels.device import arch_of
from lynx_sglang.errors import LynxError

Verdict = Literal["served", "refused", "unknown"]
PREFIX = "--moe-backend lynx: "
GIB = 1 << 30
NOT_LOCAL = ("OSError", "LocalEntryNotFoundError", "OfflineModeIsEnabled", "HFValidationError")


@dataclass(frozen=True, slots=True)
class Answer:
    verdict: Verdict
    text: str  # one line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu",
        type=int,
        metavar="ARCH",
        help="answer for a GPU of this compute capability times ten (80, 90, 100), "
        "which this machine need not have",
    )
    parser.add_argument(
        "--online", action="store_true", help="look up configurations that are not on this machine"
    )
    parser.add_argument(
        "line",
        nargs=argparse.REMAINDER,
        metavar="-- LAUNCH LINE",
        help="python -m sglang.launch_server ... or sglang serve ...; none checks the installation",
    )


def run(line: Sequence[str], gpu: int | None, online: bool) -> int:
    """Print the answer; 0 where the line is served."""
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        given = answer(options_of(line), gpu)
    except LynxError as error:
        print(f"lynx-sglang: {error}", file=sys.stderr)
        return 2
    print(f"{given.verdict}: {given.text}")
    return {"served": 0, "refused": 1, "unknown": 2}[given.verdict]


def options_of(line: Sequence[str]) -> list[str]:
    """SGLang's options in a launch line.

    Raises:
        LynxError: the line starts no SGLang server.
    """
    words = list(line)
    if words[:1] == ["--"]:
        words = words[1:]
    for start in (["-m", "sglang.launch_server"], ["sglang", "serve"]):
        for at in range(len(words) - 1):
            if words[at : at + 2] == start:
                options = words[at + 2 :]
                if start[0] == "sglang" and options and not options[0].startswith("-"):
                    options = ["--model-path", *options]
                return options
    raise LynxError(
        "expected python -m sglang.launch_server ... or sglang serve ..., got "
        + (" ".join(words) or "nothing")
    )


def answer(options: Sequence[str], gpu: int | None = None) -> Answer:
    """Resolve these options as SGLang does, and check them as Lynx does at start.

    ``gpu``: of this compute capability times ten; None for this machine's device.
    """
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    from lynx_sglang.integration import flags

    load_plugins()
    if gpu is not None:
        pretend_gpu(gpu)
        options = [*options, "--device", "cuda"]
    said = io.StringIO()
    with same_environment(), silence(said):
        try:
            args = prepare_server_args(list(options))
            if flags.published() is None:
                return Answer("refused", "--moe-backend lynx is not in the line: it runs without")
            args.resolve_once()
            return Answer("served", runner_of(args))
        except LynxError as error:
            return Answer("refused", str(error).removeprefix(PREFIX))
        except SystemExit as stop:
            words = str(stop) if isinstance(stop.code, str) else said.getvalue()
            return Answer("refused", last_line(words))
        except Exception as error:
            kind = type(error).__name__
            path = re.search(r"--model(?:-path)?[= ](\S+)", " ".join(options))
            if kind in NOT_LOCAL and path is not None and not Path(path[1]).exists():
                return Answer(
                    "unknown",
                    f"the configuration of {path[1]} is not on this machine. "
                    "Give a local folder, or --online.",
                )
            return Answer("refused", f"by SGLang itself, with or without lynx: {one_line(error)}")


def runner_of(args: Any) -> str:
    """The runner of a server's experts, in words, from its resolved arguments."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view

    from lynx_sglang.integration.compatibility import device_of, gpu_arch
    from lynx_sglang.integration.formats import Experts
    from lynx_sglang.settings import BACKEND

    view, model_config = resolving_view(args), model_config_of(args)
    dtype = str(model_config.dtype).removeprefix("torch.")
    if device_of(view) == "cpu":
        return f"on a CPU in {dtype}, by lynx's CPU experts"
    experts, arch = Experts.of(model_config, view.quantization), gpu_arch()
    on = f"on a GPU of compute capability {arch / 10:.1f}, "
    reason = experts.uncovered(arch)
    if args.moe_runner_backend != BACKEND:
        reason = "--moe-runner-backend asks for it"
    if reason is None:
        return on + "by lynx's kernels in decode steps and SGLang's triton in others"
    return f"{on}selection before SGLang's runner {view.moe_runner_backend}: {reason}"


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("lynx: ").removeprefix(PREFIX) if lines else "no reason given"


@contextlib.contextmanager
def same_environment() -> Iterator[None]:
    """Put the environment back afterwards: resolution writes variables into it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def silence(said: io.StringIO) -> Iterator[None]:
    """SGLang's logs stay out of the answer."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def pretend_gpu(arch: int) -> None:
    """Let SGLang's resolution see eight GPUs of this compute capability.

    Only facts of the hardware are pretended: what SGLang makes of them is its own. Its modules are
    imported before, because they load kernels where they find a GPU.
    """
    from sglang.srt import arg_groups
    from sglang.srt.layers import quantization
    from sglang.srt.layers.quantization.mxfp4 import Mxfp4Config
    from sglang.srt.runtime_context import override_platform
    from sglang.srt.utils import common

    for module in pkgutil.walk_packages(arg_groups.__path__, f"{arg_groups.__name__}."):
        importlib.import_module(module.name)
    major, minor = divmod(arch, 10)
    memory = (80 if arch < 100 else 180) * GIB
    properties = SimpleNamespace(
        total_memory=memory, multi_processor_count=132, major=major, minor=minor,
        name="GPU", is_integrated=False,
    )  # fmt: skip
    facts: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 8,
        "current_device": lambda: 0,
        "get_device_capability": lambda _device=None: (major, minor),
        "get_device_name": lambda _device=None: properties.name,
        "get_device_properties": lambda _device=None: properties,
        "mem_get_info": lambda _device=None: (memory, memory),
    }
    for name, fact in facts.items():
        setattr(torch.cuda, name, fact)
    arch_of.cache_clear()
    for probe in vars(common).values():
        if hasattr(probe, "cache_clear"):
            probe.cache_clear()
    quantization.QUANTIZATION_METHODS.setdefault("mxfp4", Mxfp4Config)  # added on import, on a GPU
    common.get_nvgpu_memory_capacity = lambda: memory / (1 << 20)
    override_platform(
        is_cuda=True,
        is_sm90=major == 9,
        is_sm100=major == 10,
        is_sm120=major == 12,
        is_blackwell=major in (10, 12),
        has_flashinfer=True,
    ).install()
