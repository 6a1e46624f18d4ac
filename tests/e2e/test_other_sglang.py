"""A CPU server on the other supported SGLang.

Its Python files come before the installed ones; the dependencies are those that are installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtests.server import Server
from lynx_sglang.sglang_source import Source
from tests.e2e.conftest import SLEEPS, TOGETHER, Answer

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def version() -> str:
    if not (folder := os.environ.get("OTHER_SGLANG")):
        pytest.skip("OTHER_SGLANG names no unpacked SGLang; `make check` fetches one")
    return Source(Path(folder)).version


@pytest.fixture(scope="module")
def other(version: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = (SLEEPS, TOGETHER, "--moe-backend=lynx", "--lynx-budget=25%")
    with pytest.MonkeyPatch.context() as patch:
        paths = [os.environ["OTHER_SGLANG"], os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        server = Server(model, tmp_path_factory.mktemp("other") / "log", options)
    with server:
        yield server


def test_it_serves_with_a_cap_and_counts_pauses(
    other: Server, version: str, prompts: list[str], generate: Callable[..., list[Answer]]
) -> None:
    answers = generate(other, prompts[:8], max_new_tokens=24)
    assert all(answer.report is not None for answer in answers)
    other.post("/pause_generation", {"mode": "in_place"})
    other.post("/continue_generation", {})
    (again,) = generate(other, prompts[:1], tiers=["exact"], max_new_tokens=24)
    assert again.report is not None
    assert again.report["tier"] == "exact"
    (state,) = (each["lynx"] for each in other.get("/server_info")["internal_states"])
    assert state["sglang"] == version
    assert state["decision"]["budget"] == [16] * state["num_layers"]
