"""SGLang's device timer for the CPU platform: events are host times.

SGLang's own records events on a stream, which torch lacks without an accelerator. The timer serves
``--enable-forward-pass-metrics`` and the metric of device utilisation.
"""

from __future__ import annotations

import time
from typing import Any

from sglang.srt.utils import device_timer
from sglang.srt.utils.device_timer import _TimingInterval


class HostEvent:
    """Complete when recorded: torch's CPU operators are synchronous."""

    def __init__(self) -> None:
        self.at_s = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: HostEvent) -> float:
        """In ms, as torch's events give it."""
        return (end.at_s - self.at_s) * 1e3


class HostInterval(_TimingInterval):
    """One interval between two ``HostEvent``s."""

    @staticmethod
    def create(track_stream: bool = False) -> HostInterval:
        """``track_stream`` has no effect: the host has one stream."""
        return HostInterval(start_event=HostEvent())

    def end(self, metadata: dict[str, Any]) -> None:
        self.end_event, self.metadata = HostEvent(), metadata


def install() -> None:
    device_timer._TimingInterval = HostInterval
