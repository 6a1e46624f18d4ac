"""The hooks on a scheduler's internal state: ``/server_info`` and ``/set_internal_state``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lynx_sglang import sglang_names
from lynx_sglang.errors import SettingError
from lynx_sglang.loop import changes
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.settings import Settings

logger = logging.getLogger(__name__)


def add_server_info(runtime: Runtime) -> Callable[..., None]:
    """The hook after ``get_internal_state``: a ``lynx`` part per scheduler in ``/server_info``."""

    def hook(output: Any, _controller: Any, _request: Any) -> None:
        output.internal_state["lynx"] = server_info(runtime)

    return hook


def server_info(runtime: Runtime) -> dict[str, Any]:
    decision, telemetry = runtime.decision, runtime.telemetry
    control, ranks = runtime.control, runtime.ranks
    member = None if control is None else control.member
    return {
        "sglang": sglang_names.sglang_version(),
        # A store's address may hold a password.
        "settings": asdict(runtime.settings) | {"store": runtime.settings.store and "set"},
        "num_layers": len(runtime.layer_ids),
        "num_experts": runtime.num_experts,
        "top_k": runtime.top_k,
        "decision": None if decision is None else decision.to_dict(),
        "controller": None if control is None else control.controller.state(),
        "steps": dict(telemetry.steps),
        "decisions": dict(telemetry.decisions),
        "floor_hits": telemetry.floor_hits,
        # Sums over decoding steps: take differences of two readings for a window's mean.
        "decode_steps": telemetry.decode_steps,
        "active_experts_sum": telemetry.active_experts_sum,
        "retained_mass_sum": telemetry.retained_mass_sum,
        "refused_change": telemetry.refused_change,
        "shadow": telemetry.shadow.report(),
        "fleet": None if member is None else member.state(),
        "ranks": None if ranks is None else ranks.state(),
    }


def add_update_handlers(handlers: dict[str, Any], _controller: Any) -> dict[str, Any]:
    """The hook after ``_update_handlers``: SGLang knows Lynx's keys; ``change_settings`` acts."""
    from sglang.srt.managers.scheduler_components.internal_state import _UpdateHandler

    ours = _UpdateHandler(lambda _key, _value: None, lambda _key, _value: None)
    return {**handlers, **{changes.PREFIX + name: ours for name in changes.UPDATABLE}}


def change_settings(runtime: Runtime) -> Callable[..., Any]:
    """The hook around ``set_internal_state``: Lynx's entries, all or none, beside SGLang's."""
    from sglang.srt.managers.io_struct import SetInternalStateReqOutput

    def refusal(asked: Settings) -> str | None:
        return asked.excess(runtime.num_experts) or (
            runtime.shadow_refusal if asked.shadowed_share else None
        )

    def hook(original: Callable[..., Any], controller: Any, request: Any) -> Any:
        entries = {
            key: value
            for key, value in request.server_args.items()
            if key.startswith(changes.PREFIX)
        }
        runtime.telemetry.refused_change = None
        try:
            asked = changes.changed(runtime.settings, entries, refusal) if entries else None
        except SettingError as error:
            runtime.telemetry.refused_change = str(error)
            logger.warning("%s", error)
            return SetInternalStateReqOutput(updated=False)
        output = original(controller, request)
        if asked is not None and output.updated:
            runtime.apply_overrides(asked)
        return output

    return hook
