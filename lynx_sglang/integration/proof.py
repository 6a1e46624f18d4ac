"""Proof that the hooks are in place: a server that was asked for Lynx and did not get it stops.

SGLang logs what fails in a plugin and goes on without it. On a GPU that would be a plain server.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from lynx_sglang.errors import LynxError

PACKAGE = __name__.partition(".")[0]


def guard() -> None:
    """Prove the hooks where SGLang applies them, in each process that is to run Lynx.

    The guard sits on ``HookRegistry.apply_hooks`` itself: a check inside a hook would be missing
    where all hooks are.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    registry: Any = HookRegistry
    original = registry.apply_hooks

    def apply_hooks() -> None:
        original()
        stop_unless_hooked()

    registry.apply_hooks = staticmethod(apply_hooks)


def stop_unless_hooked() -> None:
    """End the process where a hook is not in place.

    ``SystemExit``: SGLang's loader of plugins catches every ``Exception``.
    """
    if missing := list(unhooked()):
        raise SystemExit(refusal(missing))


def require_hooks() -> None:
    """The same where SGLang hears exceptions: in ``Engine``, and after the capture of graphs.

    Raises:
        LynxError: names the functions that run without their hook.
    """
    if missing := list(unhooked()):
        raise LynxError(refusal(missing))


def refusal(missing: list[str]) -> str:
    return (
        f"--moe-backend lynx: {', '.join(missing)} without lynx's hook. SGLang's log says why. "
        "Check the installation with lynx-sglang check, or serve without --moe-backend lynx."
    )


def unhooked() -> Iterator[str]:
    """SGLang functions that Lynx registered a hook for and that do not call it."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    for target, entries in HookRegistry._hooks.items():
        ours = [hook for _type, hook, _source in entries if is_ours(hook)]
        if ours and not set(map(id, ours)) <= set(map(id, hooks_of(target))):
            yield target


def is_ours(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] == PACKAGE


def hooks_of(target: str) -> Iterator[Any]:
    """The objects in the closures of a function's wrappers, outermost first."""
    owner, name = target.rsplit(".", 1)
    try:
        function = getattr(pkgutil.resolve_name(owner), name)
    except (ImportError, AttributeError):
        return
    while function is not None:
        yield from (cell.cell_contents for cell in getattr(function, "__closure__", None) or ())
        function = getattr(function, "__wrapped__", None)
