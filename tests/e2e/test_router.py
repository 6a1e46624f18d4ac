"""Two servers behind SGLang's own router: a tier arrives by the model's name."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loadtests.server import Server, free_port
from tests.e2e.forkserver import ForkedServer, ForkServer

pytest.importorskip("sglang_router", reason="sglang-router is not installed")
pytestmark = pytest.mark.e2e

OPTIONS = ("--sleep-on-idle", "--moe-backend=lynx", "--lynx-budget=25%")
PROMPT = "Question 1: What is 1 plus 17?"


def post(url: str, body: Any) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def workers(
    forks: ForkServer, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    logs = tmp_path_factory.mktemp("workers")
    with (
        ForkedServer(forks, model, logs / "one", OPTIONS) as one,
        ForkedServer(forks, model, logs / "two", OPTIONS) as two,
    ):
        yield [one, two]


@pytest.fixture(scope="module")
def router(workers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    launch = [sys.executable, "-m", "sglang_router.launch_router", "--port", str(port)]
    launch += ["--policy", "round_robin", "--prometheus-port", str(free_port())]
    launch += ["--worker-urls", *(each.url for each in workers)]
    log = tmp_path_factory.mktemp("router") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(launch, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            assert process.poll() is None, log.read_text()[-2000:]
            with suppress(OSError), urllib.request.urlopen(f"{url}/readiness", timeout=5):
                break
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def exact_requests(workers: list[Server]) -> list[int]:
    parts = [each.lynx() for each in workers]
    return [part["tiers"]["exact"]["requests"] for part in parts if part is not None]


FEW = {"temperature": 0, "max_new_tokens": 6}
CHAT = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": 6}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": PROMPT, "lora_path": "exact", "sampling_params": FEW}),
        ("/v1/chat/completions", {**CHAT, "model": "lynx:exact"}),
        ("/v1/chat/completions", {**CHAT, "model": "lynx:exact", "stream": True}),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "model": "lynx:exact"}),
    ],
)
def test_the_models_name_passes_the_router(
    router: str, workers: list[Server], path: str, body: Any
) -> None:
    before = exact_requests(workers)
    for _ in workers:  # in turn
        status, answer = post(router + path, body)
        assert status == 200, answer
    assert sum(exact_requests(workers)) == sum(before) + len(workers)


def test_a_tier_that_is_misspelt_is_answered_400(router: str) -> None:
    status, answer = post(f"{router}/v1/chat/completions", {**CHAT, "model": "lynx:exakt"})
    assert status == 400
    assert "tiers are flexible and exact" in answer


def test_the_router_drops_custom_params(router: str, workers: list[Server]) -> None:
    """The reason for the other carrier: once this fails, a router keeps them."""
    before = exact_requests(workers)
    body = {"text": PROMPT, "sampling_params": {**FEW, "custom_params": {"lynx": "exact"}}}
    status, _ = post(f"{router}/generate", body)
    assert status == 200
    assert exact_requests(workers) == before
