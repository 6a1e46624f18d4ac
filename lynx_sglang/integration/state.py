"""The hooks on a scheduler's internal state: ``/server_info`` and ``/set_internal_state``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from lynx_sglang import sglang_names
from lynx_sglang.errors import SettingError
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.loop.telemetry import UPDATABLE, parse_update, updated


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
        "shadow": telemetry.shadow.report(),
        "fleet": None if member is None else member.state(),
        "ranks": None if ranks is None else ranks.state(),
    }


def add_update_handlers(runtime: Runtime) -> Callable[..., dict[str, Any]]:
    """The hook after ``_update_handlers``: Lynx's keys for ``/set_internal_state``.

    ``lynx_slo_itl_ms``, ``lynx_slo_ttft_ms`` (0: none), ``lynx_budget`` (0: auto, -1: full),
    ``lynx_demand`` (-1: auto), ``lynx_min_retained_mass``, ``lynx_floor``,
    ``lynx_max_quality_loss`` (0: none), ``lynx_shadow_share`` (-1: auto).
    """
    from sglang.srt.managers.scheduler_components.internal_state import (
        UpdateRejected,
        _UpdateHandler,
    )

    def apply(key: str, value: float) -> None:
        name, parsed = parse_update(key, value)
        runtime.apply_overrides(replace(runtime.settings, **{name: parsed}))

    def hook(handlers: dict[str, Any], _controller: Any) -> dict[str, Any]:
        asked = runtime.settings  # and what this request's keys, one by one, make of them

        def validate(key: str, value: float) -> None:
            nonlocal asked
            try:
                asked = updated(asked, key, value, runtime.shadow_refusal)
            except SettingError as error:
                raise UpdateRejected(str(error)) from None

        ours = {f"lynx_{name}": _UpdateHandler(validate, apply) for name in UPDATABLE}
        return {**handlers, **ours}

    return hook
