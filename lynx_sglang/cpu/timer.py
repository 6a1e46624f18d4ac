"""SGLang's device timer where the host is the device: its events are times of day.

It records events in a stream; torch has none to record on a machine without an accelerator. Behind
it are ``--enable-forward-pass-metrics`` and the metric of how busy the device is.
"""

from __future__ import annotations

import time
from typing import Any

from sglang.srt.utils import device_timer
from sglang.srt.utils.device_timer import _TimingInterval


class HostEvent:
    """Over as soon as it is recorded: the host waits for its operators."""

    def __init__(self) -> None:
        self.at_s = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: HostEvent) -> float:
        """ms, as torch's events say it."""
        return (end.at_s - self.at_s) * 1e3


class HostInterval(_TimingInterval):
    @staticmethod
    def create(track_stream: bool = False) -> HostInterval:
        """All work of the host is on one stream."""
        return HostInterval(start_event=HostEvent())

    def end(self, metadata: dict[str, Any]) -> None:
        self.end_event, self.metadata = HostEvent(), metadata


def install() -> None:
    device_timer._TimingInterval = HostInterval
