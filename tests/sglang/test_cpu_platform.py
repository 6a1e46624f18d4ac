"""The CPU platform's share of the machine, where a server has several ranks."""

from __future__ import annotations

import os

import pytest

from lynx_sglang.cpu_platform import CORES_VARIABLE, share_cores


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {4, 2})


@pytest.mark.parametrize(("ranks", "names"), [(2, "2|4"), (3, "2|4|2")])
def test_every_rank_has_a_core_by_name(ranks: int, names: str) -> None:
    share_cores(ranks)
    assert os.environ[CORES_VARIABLE] == names


def test_an_operators_cores_stay() -> None:
    os.environ[CORES_VARIABLE] = "0-1|2-3"
    share_cores(2)
    assert os.environ[CORES_VARIABLE] == "0-1|2-3"
