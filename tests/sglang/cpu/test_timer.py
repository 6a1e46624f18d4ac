"""SGLang's timing of forward passes, with the host's clock behind it."""

from __future__ import annotations

import time

import pytest
from sglang.srt.observability.forward_pass_metrics import FpmTiming
from sglang.srt.utils import device_timer

from lynx_sglang.cpu import timer


def test_a_pass_is_timed_from_its_first_start_to_its_last_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_timer, "_TimingInterval", device_timer._TimingInterval)
    timer.install()
    device, timing, found = device_timer.DeviceTimer(), FpmTiming(), []
    began_s = time.perf_counter()
    with device.capture(timing):
        for _ in range(2):
            with device.wrap({"category": "decode"}):
                time.sleep(0.005)
            time.sleep(0.005)
    timing.seal()
    timing.when_ready(found.append)
    (elapsed_s,) = found
    assert 0.015 <= elapsed_s <= time.perf_counter() - began_s
    assert not device.is_active()
