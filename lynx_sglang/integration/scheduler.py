"""The hook on the scheduler's broadcast: decisions travel with the requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lynx_sglang.loop.ranks import Order
from lynx_sglang.loop.runtime import Runtime


def receive(runtime: Runtime) -> Callable[..., list[Any]]:
    """The hook around ``SchedulerRequestReceiver.recv_requests``: an order rides in and out."""

    def hook(
        original: Callable[..., list[Any]], receiver: Any, local_reqs: list[Any] | None = None
    ) -> list[Any]:
        if (order := runtime.next_order()) is not None:
            local_reqs = [*(local_reqs or []), order]
        received = original(receiver, local_reqs)
        for item in received:
            if isinstance(item, Order):
                runtime.obey(item)
        return [item for item in received if not isinstance(item, Order)]

    return hook
