"""The hooks on the scheduler: decisions travel with its broadcast, pauses are told to the clock."""

from __future__ import annotations

import time
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


def continue_generation(runtime: Runtime) -> Callable[..., None]:
    """The hook around ``Scheduler.continue_generation``, the end of a pause."""

    def hook(original: Callable[..., None], scheduler: Any, request: Any) -> None:
        since_s = scheduler._pause_started_at
        original(scheduler, request)
        if since_s is not None:
            runtime.note_pause(since_s, time.monotonic())

    return hook
