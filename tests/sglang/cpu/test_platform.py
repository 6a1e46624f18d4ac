"""The CPU platform's share of the machine, where a server has several ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from sglang.srt.arg_groups import overrides, resolution_hooks
from sglang.srt.server_args import ServerArgs  # before the platform, which SGLang itself imports

from lynx_sglang.cpu import entry_point
from lynx_sglang.cpu.platform import CORES_VARIABLE, CpuPlatform

MODEL = Path(__file__).parents[3] / "models" / "lynx-moe-tiny"


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


@pytest.mark.parametrize(
    ("named", "served"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_dtype_is_the_fast_one_unless_named(
    named: str,
    served: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SGLang's own resolution, of a float32 checkpoint."""
    monkeypatch.setattr(resolution_hooks, "_HOOKS", {})
    entry_point.register_defaults()
    args = ServerArgs(model_path=str(MODEL), device=None, dtype=named)
    with caplog.at_level("INFO"):
        args.resolve_once()
    assert overrides.resolving_view(args).device == "cpu"
    assert overrides.model_config_of(args).dtype is served
    said = "serving in float32" if named == "auto" else "--dtype bfloat16 runs without the compiled"
    assert said in caplog.text
