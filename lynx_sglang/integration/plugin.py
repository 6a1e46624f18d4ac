"""Entry point ``sglang.srt.plugins``: runs in every SGLang process.

Without ``--moe-backend lynx`` it adds command-line options and nothing else. With it, the
scheduler processes, and they alone, also get the runner, the selection and the telemetry.
"""

from __future__ import annotations

import logging
import sys

import setproctitle

from lynx_sglang import settings, sglang_names
from lynx_sglang.integration import flags, proof

logger = logging.getLogger(__name__)

# Titles of SGLang's processes that load plugins and run no model.
WITHOUT_MODEL = ("sglang::detokenizer", "sglang::data_parallel_controller")
_registered = False


def register() -> None:
    """Add the options, and in a server process the hooks; idempotent."""
    global _registered
    if _registered:
        return
    _registered = True
    published = flags.published()
    if not sglang_names.is_supported():
        reason = (
            f"it supports SGLang {', '.join(sglang_names.SUPPORTED_VERSIONS)}, and "
            f"{sglang_names.sglang_version()} is installed. lynx-sglang check names the differences"
        )
        if published is not None or flags.are_in(sys.argv[1:]):
            raise SystemExit(
                f"lynx: --moe-backend lynx is not served: {reason}. "
                "Install a supported version, or serve without --moe-backend lynx."
            )
        logger.warning("lynx is off: %s.", reason)
        return
    if published is None or setproctitle.getproctitle().startswith(WITHOUT_MODEL):
        _register_launcher()
        return
    try:
        proof.guard()
        _register_launcher()
        _register_server(published)
    except Exception as error:
        # SGLang would log it and serve without Lynx.
        raise SystemExit(f"lynx: --moe-backend lynx did not start: {error!r}") from error


def _register_launcher() -> None:
    """The options come last: where a step before them fails, SGLang does not accept the flag."""
    from sglang.srt.arg_groups.choices import (
        add_attention_backend_choices,
        add_moe_runner_backend_choices,
    )
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from lynx_sglang.cpu import entry_point
    from lynx_sglang.integration import compatibility, frontend

    compatibility.register()
    if entry_point.activate() is not None:
        add_attention_backend_choices([entry_point.ATTENTION_BACKEND])
        entry_point.register_defaults()
    add_moe_runner_backend_choices([settings.BACKEND])
    HookRegistry.register(sglang_names.ADD_CLI_ARGS.hook_path, flags.add_cli_args, HookType.AFTER)
    HookRegistry.register(
        sglang_names.FROM_CLI_ARGS.hook_path, flags.from_cli_args, HookType.AROUND
    )
    HookRegistry.register(sglang_names.START.hook_path, frontend.install_at_start, HookType.AFTER)
    if engine := sys.modules.get("sglang.srt.entrypoints.engine"):
        # Engine.__init__ loads the plugins itself: a hook on it would come too late, and the
        # registry would replace every binding of ServerArgs rather than this attribute.
        flags.extend_engine(engine.Engine)


def _register_server(published: settings.Settings) -> None:
    from lynx_sglang.integration import hooks

    hooks.install(published)
