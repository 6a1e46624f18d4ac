"""``--moe-backend lynx`` and the ``--lynx-*`` options, on the command line and in ``Engine``.

SGLang's ``ServerArgs`` is a closed record, so Lynx's options are taken out before it is built,
resolved, and handed to the server's processes in one environment variable.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lynx_sglang import settings, sglang_names
from lynx_sglang.errors import LynxError, SettingError
from lynx_sglang.integration import proof
from lynx_sglang.settings import BACKEND, OPTIONS, Settings

UNSET = (None, "auto")  # --moe-runner-backend, where the operator named none
_engines: dict[int, str] = {}  # published settings, by the id of an Engine's ServerArgs


def add_cli_args(_result: None, parser: argparse.ArgumentParser) -> None:
    """Hook after ``ServerArgs.add_cli_args``.

    Without the hook that takes the options out, SGLang would parse them and serve without Lynx:
    then they stay out, and it does not know them.
    """
    if sglang_names.FROM_CLI_ARGS.hook_path in proof.unhooked():
        return
    group = parser.add_argument_group(
        "lynx", "Batch-aware expert sharing for MoE decoding; active with --moe-backend lynx."
    )
    group.add_argument(
        "--moe-backend",
        dest="moe_backend",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="lynx, or any name that --moe-runner-backend takes. With lynx, a runner that "
        "--moe-runner-backend names runs the experts behind lynx's selection (on a GPU). "
        "Default: auto.",
    )
    group.add_argument(
        settings.flag_of("config"),
        dest="lynx_config",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="JSON or YAML file of the settings below. Default: none.",
    )
    for name, spec in OPTIONS.items():
        about, allowed = spec.metadata["about"], spec.metadata["allowed"]
        help_text = f"{about} Takes {allowed}. Default: {spec.default}."
        group.add_argument(
            settings.flag_of(name),
            dest=f"lynx_{name}",
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=help_text.replace("%", "%%"),
        )


def from_cli_args(build: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """Hook around ``ServerArgs.from_cli_args``: a wrong setting ends the launcher with its text."""
    given = _take_options(vars(args))
    try:
        if publish(_take_backend(vars(args)), given) is not None:
            proof.stop_unless_hooked()
    except LynxError as error:
        raise SystemExit(f"lynx: {error}") from None
    return build(cls, args)


def engine_args(build: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for ``Engine.server_args_class`` that takes ``moe_backend`` and ``lynx_*``."""

    def server_args(**kwargs: Any) -> Any:
        given = _take_options(kwargs)
        published = publish(_take_backend(kwargs), given)
        try:
            if published is not None:
                proof.require_hooks()
            args = build(**kwargs)
        except BaseException:
            os.environ.pop(settings.TRANSPORT_VARIABLE, None)
            raise
        if published is not None:
            _engines[id(args)] = published.to_json()
        return args

    return server_args


def extend_engine(engine_class: Any) -> None:
    """Make ``Engine`` take Lynx's options, and leave none in the environment when it ends."""
    launch = engine_class.__dict__["_launch_subprocesses"].__func__
    shutdown = engine_class.shutdown

    def launch_subprocesses(cls: type, server_args: Any, *rest: Any, **named: Any) -> Any:
        try:
            return launch(cls, server_args, *rest, **named)
        except BaseException:
            withdraw(server_args)
            raise

    @functools.wraps(shutdown)
    def shutdown_engine(engine: Any) -> Any:
        try:
            return shutdown(engine)
        finally:
            withdraw(engine.server_args)

    engine_class.server_args_class = staticmethod(engine_args(engine_class.server_args_class))
    engine_class._launch_subprocesses = classmethod(launch_subprocesses)
    engine_class.shutdown = shutdown_engine


def withdraw(server_args: Any) -> None:
    """Take an ``Engine``'s settings out of the environment; those of another engine stay."""
    text = _engines.pop(id(server_args), None)
    if text is not None and os.environ.get(settings.TRANSPORT_VARIABLE) == text:
        del os.environ[settings.TRANSPORT_VARIABLE]


def _take_options(values: dict[str, Any]) -> dict[str, Any]:
    """Remove and return the Lynx options among ``values``, by field name."""
    names = [f"lynx_{name}" for name in (*OPTIONS, "config")]
    return {name.removeprefix("lynx_"): values.pop(name) for name in names if name in values}


def _take_backend(values: dict[str, Any]) -> str | None:
    """Remove ``moe_backend`` from ``values`` and return who selects experts.

    What is left in ``moe_runner_backend`` is who runs them: with lynx, a runner that was named
    there, else lynx.
    """
    runner = values.get("moe_runner_backend")
    backend: str | None = values.pop("moe_backend", runner)
    if backend is not None and (backend != BACKEND or runner in UNSET):
        values["moe_runner_backend"] = backend
    return backend


def publish(backend: str | None, given: Mapping[str, Any]) -> Settings | None:
    """Resolve the settings and hand them to the processes that this one will start.

    Raises:
        SettingError: a bad value, or an option without ``--moe-backend lynx``.
    """
    os.environ.pop(settings.TRANSPORT_VARIABLE, None)
    if backend != BACKEND:
        if given:
            flags = ", ".join(settings.flag_of(name) for name in given)
            raise SettingError(f"{flags}: needs --moe-backend lynx, got {backend or 'none'}")
        return None
    options = dict(given)
    config_file = options.pop("config", None)
    resolved = settings.resolve(options, os.environ, config_file)
    os.environ[settings.TRANSPORT_VARIABLE] = resolved.to_json()
    return resolved


def are_in(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for Lynx; for where SGLang's parser is not extended."""
    backends = ("--moe-backend", "--moe-runner-backend")
    return any(
        (flag in backends and value == BACKEND)
        or flag in [f"{name}={BACKEND}" for name in backends]
        or flag.startswith("--lynx-")
        for flag, value in pairwise([*arguments, ""])
    )


def published() -> Settings | None:
    """The settings of the server that this process belongs to; None when it is not Lynx's."""
    text = os.environ.get(settings.TRANSPORT_VARIABLE)
    return Settings.from_json(text) if text else None
