"""SGLang's output streamer with Lynx's report on each finished request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.loop.step import is_probe
from lynx_sglang.loop.tier import KEY, Tier, account_of, tier_of


def get_output_streamer_class(builder: Builder[Runtime]) -> Callable[..., type]:
    """The hook after ``Scheduler.get_output_streamer_class``."""

    def finished(tier: Tier) -> None:
        if builder.runtime is not None:
            builder.runtime.telemetry.finished(tier)

    default = Tier(builder.settings.default_tier)
    return lambda base, _scheduler: reporting_streamer(base, default, finished)


def reporting_streamer(base: type, default: Tier, finished: Callable[[Tier], None]) -> type:
    """SGLang's output streamer ``base`` with a ``lynx`` report on each finished request.

    Args:
        finished: takes the tier of each request that has ended.
    """

    class LynxOutputStreamer(base):
        __slots__ = ()
        has_additional_customized_info = True

        def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
            info: dict[str, list[Any]] = super().build_additional_customized_info(reqs)
            ended = [request for request in reqs if request.finished()]
            for request in ended:
                if not is_probe(request):
                    finished(tier_of(request, default))
            if ended:
                info[KEY] = [
                    [account_of(request).report(tier_of(request, default))]
                    if request.finished()
                    else []
                    for request in reqs
                ]
            return info

    return LynxOutputStreamer
