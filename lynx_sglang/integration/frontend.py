"""The hooks of the process that takes requests: HTTP server and tokenizer, or ``Engine``.

A wrong tier or change of a setting is answered there, before a scheduler sees it, and a report
becomes one object of ``meta_info``. Further tokenizer workers (``--tokenizer-worker-num``) load no
plugins: behind them a wrong tier is served exact, and a report stays a list of one.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from lynx_sglang import sglang_names
from lynx_sglang.errors import SettingError
from lynx_sglang.integration import flags, tier_alias
from lynx_sglang.loop import changes
from lynx_sglang.loop.tier import KEY, Account, Tier, asked_tier

CHANGE = "/set_internal_state"


def install_at_start(_result: Any, *_args: Any, **_kwargs: Any) -> None:
    """Hook after ``PortArgs.init_new``: a launcher has imported its server and starts it next."""
    if flags.published() is not None and "sglang.srt.managers.tokenizer_manager" in sys.modules:
        install()


@cache
def install() -> None:
    """Once a process: SGLang's plugin hooks, and a filter in front of its HTTP application."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for name, hook, kind in (
        (sglang_names.RESOLVE_LORA, tier_alias.resolve, HookType.AROUND),
        (sglang_names.VERIFY_SAMPLING, refuse_tier, HookType.AFTER),
        (sglang_names.UPDATE_META_INFO, report_once, HookType.AROUND),
        (sglang_names.HANDLE_ABORT, report_unserved, HookType.AROUND),
        (sglang_names.CHANGE_STATE, explain_refusal, HookType.AROUND),
    ):
        HookRegistry.register(name.hook_path, hook, kind)
    HookRegistry.apply_hooks()
    if http_server := sys.modules.get("sglang.srt.entrypoints.http_server"):
        http_server.app.add_middleware(ChangeFilter)


def refuse_tier(_result: None, params: Any, *_rest: Any) -> None:
    """After ``SamplingParams.verify``, whose ValueError SGLang answers with status 400."""
    if flags.published() is not None:
        asked_tier(params.custom_params)


def report_once(
    original: Callable[..., None],
    manager: Any,
    meta_info: dict[str, Any],
    state: Any,
    customized_info: dict[str, list[Any]],
    index: int,
    *rest: Any,
) -> None:
    """Around ``update_request_meta_info``, which gathers lists with an entry for each token."""
    others = {key: values for key, values in customized_info.items() if key != KEY}
    original(manager, meta_info, state, others, index, *rest)
    if KEY in customized_info and (reports := customized_info[KEY][index]):
        meta_info[KEY] = reports[-1]


def report_unserved(original: Callable[..., None], manager: Any, abort: Any) -> None:
    """Around ``_handle_abort_req``: who waited in vain has a report too, of no tokens."""
    state, settings = manager.rid_to_state.get(abort.rid), flags.published()
    original(manager, abort)
    if settings is None or state is None or not state.out_list or state.output_ids:
        return  # a request that was retracted has tokens, and its account went with it
    asked = asked_tier((state.obj.sampling_params or {}).get("custom_params"))
    report = Account().report(asked or Tier(settings.default_tier))
    state.out_list[-1]["meta_info"].setdefault(KEY, report)


async def explain_refusal(
    original: Callable[..., Awaitable[list[bool]]], manager: Any, request: Any
) -> list[bool]:
    """Around ``TokenizerManager.set_internal_state``: a refused change answers why, status 400."""
    taken = await original(manager, request)
    if all(taken) or not any(key.startswith(changes.PREFIX) for key in request.server_args):
        return taken
    from fastapi import HTTPException

    states = await manager.get_internal_state()
    reasons = [state.get(KEY, {}).get("refused_change") for state in states]
    reason = next((each for each in reasons if each), None)
    if reason is None:
        return taken
    raise HTTPException(status_code=400, detail=reason)


class ChangeFilter:
    """ASGI: Lynx's entries of a change are checked as they were sent.

    SGLang's own parsing makes the number 1 of ``true``, and refuses words without saying which
    would do.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(CHANGE):
            await self.app(scope, receive, send)
            return
        from fastapi import Request
        from fastapi.responses import JSONResponse

        try:
            body = changes.wire_body(await Request(scope, receive).body())
        except SettingError as error:
            refusal = {"object": "error", "message": str(error), "type": "400", "code": 400}
            await JSONResponse(refusal, status_code=400)(scope, receive, send)
            return
        is_read = False

        async def receive_again() -> Any:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_again, send)
