"""The hooks on a scheduler's internal state: ``/server_info`` and ``/set_internal_state``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from lynx_sglang import sglang_names
from lynx_sglang.errors import SettingError
from lynx_sglang.integration.compatibility import shadow_refusal
from lynx_sglang.loop import changes
from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.loop.telemetry import Telemetry
from lynx_sglang.settings import Settings

logger = logging.getLogger(__name__)


def add_server_info(builder: Builder[Runtime]) -> Callable[..., None]:
    """The hook after ``get_internal_state``: a ``lynx`` part per scheduler in ``/server_info``."""

    def hook(output: Any, controller: Any, _request: Any) -> None:
        scheduler = controller.scheduler
        output.internal_state["lynx"] = server_info(builder) | {
            "running": len(scheduler.running_batch.reqs),
            "waiting": len(scheduler.waiting_queue),
        }

    return hook


def server_info(builder: Builder[Runtime]) -> dict[str, Any]:
    """JSON of one scheduler process; what its first step makes is None until then."""
    runtime, layers = builder.runtime, builder.layers
    control = None if runtime is None else runtime.control
    replica = None if control is None else control.replica
    pacing = None if control is None else control.pacing
    telemetry = Telemetry() if runtime is None else runtime.telemetry
    return {
        "sglang": sglang_names.sglang_version(),
        # A store's address may hold a password.
        "settings": asdict(builder.settings) | {"store": builder.settings.store and "set"},
        "num_layers": len(layers),
        "num_experts": layers.num_experts,
        "top_k": layers.top_k,
        "decision": None if runtime is None else runtime.decision.to_dict(),
        "controller": None if control is None else control.controller.state(),
        "is_idle": telemetry.is_idle,  # then "decision" is of the last batch
        "steps": dict(telemetry.steps),
        "decisions": dict(telemetry.decisions),
        "floor_hits": telemetry.floor_hits,
        # Sums over decoding steps: take differences of two readings for a window's mean.
        "decode_steps": telemetry.decode_steps,
        "active_experts_sum": telemetry.active_experts_sum,
        "retained_mass_sum": telemetry.retained_mass_sum,
        "covered_mass_sum": telemetry.covered_mass_sum,
        "tiers": telemetry.tiers(),
        "refused_change": builder.refused_change,
        "shadow": telemetry.shadow.report(),
        "fleet": None if replica is None else replica.state(),
        "pacing": None if pacing is None else {"is_on": pacing.is_on, **pacing.pacer.state()},
        "ranks": None if runtime is None else runtime.ranks.state(),
    }


def add_update_handlers(handlers: dict[str, Any], _controller: Any) -> dict[str, Any]:
    """The hook after ``_update_handlers``: SGLang accepts Lynx's keys; ``change_settings`` acts."""
    from sglang.srt.managers.scheduler_components.internal_state import _UpdateHandler

    ours = _UpdateHandler(lambda _key, _value: None, lambda _key, _value: None)
    return {**handlers, **{changes.PREFIX + name: ours for name in changes.UPDATABLE}}


def change_settings(builder: Builder[Runtime]) -> Callable[..., Any]:
    """The hook around ``set_internal_state``: Lynx's entries, all or none, beside SGLang's."""
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.managers.io_struct import SetInternalStateReqOutput
    from sglang.srt.runtime_context import get_server_args

    def refusal(scheduler: Any, asked: Settings) -> str | None:
        if reason := asked.excess(builder.layers.num_experts):
            return reason
        if not asked.shadowed_share:
            return None
        return shadow_refusal(resolving_view(get_server_args()), scheduler.model_config)

    def hook(original: Callable[..., Any], controller: Any, request: Any) -> Any:
        entries = {
            key: value
            for key, value in request.server_args.items()
            if key.startswith(changes.PREFIX)
        }
        builder.refused_change = None
        try:
            refused = partial(refusal, controller.scheduler)
            asked = changes.changed(builder.settings, entries, refused) if entries else None
        except SettingError as error:
            builder.refused_change = str(error)
            logger.warning("%s", error)
            return SetInternalStateReqOutput(updated=False)
        output = original(controller, request)
        if asked is not None and output.updated:
            builder.apply(asked)
        return output

    return hook
