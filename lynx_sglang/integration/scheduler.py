"""The hooks on the scheduler: a step's begin and end, orders on its broadcast, pauses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lynx_sglang.errors import LynxError
from lynx_sglang.loop.builder import Builder
from lynx_sglang.loop.ranks import Order
from lynx_sglang.loop.runtime import Runtime

if TYPE_CHECKING:
    from lynx_sglang.gpu.runtime import GpuBuilder


def run_batch(builder: Builder[Runtime]) -> Callable[..., Any]:
    """The hook around ``Scheduler.run_batch``: one step."""

    def hook(original: Callable[..., Any], scheduler: Any, batch: Any, *rest: Any) -> Any:
        return builder.start().run_batch(original, scheduler, batch, *rest)

    return hook


def process_result(builder: GpuBuilder) -> Callable[..., Any]:
    """The hook around ``Scheduler.process_batch_result``, which waits for a step's tokens."""

    def hook(original: Callable[..., Any], scheduler: Any, batch: Any, result: Any) -> Any:
        builder.start().process_result(result)
        return original(scheduler, batch, result)

    return hook


def receive(builder: Builder[Runtime]) -> Callable[..., list[Any]]:
    """The hook around ``SchedulerRequestReceiver.recv_requests``: an order rides in and out."""

    def hook(
        original: Callable[..., list[Any]], receiver: Any, local_reqs: list[Any] | None = None
    ) -> list[Any]:
        runtime = builder.runtime
        if runtime is not None and (order := runtime.order()) is not None:
            local_reqs = [*(local_reqs or []), order]
        received = original(receiver, local_reqs)
        for item in received:
            if not isinstance(item, Order):
                continue
            if runtime is None:
                raise LynxError("an order of rank 0 came before this rank's first step")
            runtime.obey(item)
        return [item for item in received if not isinstance(item, Order)]

    return hook


def note_idle(builder: Builder[Runtime]) -> Callable[..., None]:
    """The hook after ``record_scheduler_idle``: nothing runs or waits."""

    def hook(_result: None, _reporter: Any) -> None:
        if builder.runtime is not None:
            builder.runtime.note_idle()

    return hook


class Pauses:
    """The hooks around a scheduler's pause and its end."""

    def __init__(self, builder: Builder[Runtime]) -> None:
        self._builder = builder
        self._since_s: float | None = None

    def pause_generation(self, original: Callable[..., None], scheduler: Any, request: Any) -> None:
        original(scheduler, request)  # the step in flight ends first
        if self._since_s is None:
            self._since_s = time.monotonic()

    def continue_generation(
        self, original: Callable[..., None], scheduler: Any, request: Any
    ) -> None:
        original(scheduler, request)
        since_s, self._since_s = self._since_s, None
        if since_s is not None and self._builder.runtime is not None:
            self._builder.runtime.note_pause(since_s, time.monotonic())
