"""SGLang's output streamer with Lynx's report on each finished request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lynx_sglang.loop.tier import KEY, Tier, account_of, tier_of


def get_output_streamer_class(default: Tier) -> Callable[..., type]:
    """The hook after ``Scheduler.get_output_streamer_class``."""
    return lambda base, _scheduler: reporting_streamer(base, default)


def reporting_streamer(base: type, default: Tier) -> type:
    """SGLang's output streamer ``base`` with a ``lynx`` report on each finished request."""

    class LynxOutputStreamer(base):
        __slots__ = ()
        has_additional_customized_info = True

        def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
            info: dict[str, list[Any]] = super().build_additional_customized_info(reqs)
            if any(request.finished() for request in reqs):
                info[KEY] = [
                    [account_of(request).report(tier_of(request, default))]
                    if request.finished()
                    else []
                    for request in reqs
                ]
            return info

    return LynxOutputStreamer
