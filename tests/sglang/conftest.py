"""Fixtures of the plugin's tests: a lone rank for SGLang's own MoE layers, calibration files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lynx_sglang import calibration

ONE_RANK = {
    **dict.fromkeys(("moe_ep_rank", "moe_tp_rank", "tp_rank"), 0),
    **dict.fromkeys(("moe_ep_size", "moe_tp_size", "tp_size", "attn_tp_size"), 1),
    "tp_group": None,
    "dp_rank": None,
}


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """The process is its replica's only rank."""
    from sglang.srt.runtime_context import get_parallel, publish
    from sglang.srt.server_args import ServerArgs

    from lynx_sglang.settings import BACKEND

    args = ServerArgs(model_path="none", device="cpu", moe_runner_backend=BACKEND)
    publish(args, role="scheduler")
    with get_parallel().override(**ONE_RANK):
        yield


class HostEvent(torch.cpu.Event):
    """A CPU's event with the timing that a GPU's has; torch's own takes no argument."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at_s = 0.0 if enable_timing else float("nan")

    def record(self, stream: object = None) -> None:
        self.at_s = time.perf_counter()

    def elapsed_time(self, end: HostEvent) -> float:
        return (end.at_s - self.at_s) * 1e3


@pytest.fixture
def timed_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of CPU tensors are timed."""
    monkeypatch.setattr(torch.cpu, "Event", HostEvent)


@pytest.fixture
def cpu_for_gpu(monkeypatch: pytest.MonkeyPatch, timed_events: None) -> None:
    """Lynx's kernels take CPU tensors: the interpreter multiplies float32 alone, and a CPU has no
    compute capability.
    """
    from sglang.srt.layers.moe.utils import MoeRunnerBackend
    from sglang.srt.runtime_context import get_flags

    from lynx_sglang.gpu import fused_runner

    get_flags().moe.runner_backend = MoeRunnerBackend.TRITON  # as admission resolves ours
    monkeypatch.setattr(fused_runner, "HIDDEN_DTYPES", (torch.float32,))
    monkeypatch.setattr(fused_runner, "MIN_ARCH", 0)
    monkeypatch.setattr(fused_runner, "MIN_FP8_ARCH", 0)


@pytest.fixture
def calibrated(tmp_path: Path) -> Callable[[list[list[float]]], Path]:
    """Writes a calibration file with these contributions, [L][E], and layers alike."""

    def make(contributions: list[list[float]]) -> Path:
        path, zeros = tmp_path / "calibration.json", [0.0] * len(contributions)
        calibration.Calibration(
            format=calibration.FORMAT, lynx=calibration.version(), model="m", model_sha256="",
            policy="lynx", rows=16, tokens=512, quality_loss=0.01, min_retained_mass=0.6,
            shares=[], layer_share=0.4, layer_kl=zeros, layer_offsets=zeros,
            contributions=contributions,
        ).save(path)  # fmt: skip
        return path

    return make
