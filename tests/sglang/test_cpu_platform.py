"""The CPU platform's share of the machine, where a server has several ranks."""

from __future__ import annotations

import os

import pytest
from sglang.srt.server_args import ServerArgs  # before the platform, which SGLang itself imports

from lynx_sglang.cpu.platform import CORES_VARIABLE, CpuPlatform


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {4, 2})


def start(ranks: int) -> None:
    args = ServerArgs(model_path="none", device="cpu", tp_size=ranks)
    CpuPlatform().apply_server_args_defaults(args)
    assert args.disable_overlap_schedule


@pytest.mark.parametrize(("ranks", "names"), [(1, None), (2, "2|4"), (3, "2|4|2")])
def test_every_rank_has_a_core_by_name(ranks: int, names: str | None) -> None:
    start(ranks)
    assert os.environ.get(CORES_VARIABLE) == names


def test_an_operators_cores_stay() -> None:
    os.environ[CORES_VARIABLE] = "0-1|2-3"
    start(2)
    assert os.environ[CORES_VARIABLE] == "0-1|2-3"
