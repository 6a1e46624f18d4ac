"""Real servers, one of each flavour for the whole session: plain SGLang, and Lynx."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtests.server import SERVE, Server, ServerError
from models.tasks import problems
from tests.e2e.forkserver import ForkedServer, ForkServer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "lynx-moe-tiny"
# Idle servers would each keep a core from the test that runs.
SLEEPS = "--sleep-on-idle"
# One message for all prompts of a call, so that every step's batch is the same in every run.
TOGETHER = "--enable-tokenizer-batch-encode"
# As /set_internal_state spells no SLO, and nothing fixed.
DEFAULTS = {
    "slo_itl_ms": 0,
    "slo_tpot_ms": 0,
    "slo_ttft_ms": 0,
    "budget": 0,
    "demand": -1,
    "min_retained_mass": 0.75,
    "floor": 1,
    "max_quality_loss": 0,
    "shadow_share": -1,
}


def pytest_configure() -> None:
    """Told to end, pytest tears down as at an interrupt: no server outlives its tests."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's tokens, their log-probabilities, and Lynx's report (None on plain SGLang)."""

    tokens: list[int]
    logprobs: list[float]
    report: dict[str, Any] | None


@pytest.fixture(scope="session")
def model() -> Path:
    if not (MODEL / "config.json").exists():
        pytest.skip("models/lynx-moe-tiny is not in this checkout")
    return MODEL


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Starts servers in seconds."""
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def plain(
    forks: ForkServer, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("plain") / "log"
    passes = f"--forward-pass-metrics-ipc-name=ipc://{log.with_name('passes')}"
    options = (SLEEPS, "--enable-forward-pass-metrics", passes)
    with ForkedServer(forks, model, log, options) as server:
        yield server


@pytest.fixture(scope="session")
def lynx(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started with ``sglang serve``, at full budget until a test's ``settings`` say otherwise."""
    options = (SLEEPS, TOGETHER, "--moe-backend=lynx", "--lynx-budget=full", "--lynx-slo-itl-ms=20")
    with Server(model, tmp_path_factory.mktemp("lynx") / "log", options, SERVE) as server:
        yield server


@pytest.fixture
def settings(lynx: Server) -> Iterator[Callable[..., bool]]:
    """Sets ``lynx_<name>`` of each keyword on the Lynx server; whether it took them (all or none).

    Starts from the defaults and an empty prefix cache, and leaves the defaults behind.
    """

    def change(**values: float) -> bool:
        body = {"server_args": {f"lynx_{name}": value for name, value in values.items()}}
        try:
            return lynx.post("/set_internal_state", body) == [True]
        except ServerError as error:
            if "HTTP 400" not in str(error):
                raise
            return False

    assert change(**DEFAULTS)
    lynx.post("/flush_cache", {})
    yield change
    assert change(**DEFAULTS)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """200 chat prompts, both tasks in turn."""
    pools = [problems(task, "test", 100, seed=11) for task in ("math", "code")]
    return [
        f"<|im_start|>user\n{problem.prompt}<|im_end|>\n<|im_start|>assistant\n"
        for pair in zip(*pools, strict=True)
        for problem in pair
    ]


@pytest.fixture(scope="session")
def generate() -> Callable[..., list[Answer]]:
    """Greedy answers to one batch, in order; ``tiers`` names each request's."""

    def ask(
        server: Server, prompts: list[str], tiers: list[str] | None = None, **sampling: Any
    ) -> list[Answer]:
        greedy = {"temperature": 0, "max_new_tokens": 160, **sampling}
        each = [greedy] * len(prompts)
        if tiers is not None:
            each = [{**greedy, "custom_params": {"lynx": tier}} for tier in tiers]
        body = {"text": prompts, "sampling_params": each, "return_logprob": True}
        answers = [answer["meta_info"] for answer in server.post("/generate", body)]
        return [
            Answer(
                tokens=[token for _, token, *_ in info["output_token_logprobs"]],
                logprobs=[logprob for logprob, *_ in info["output_token_logprobs"]],
                report=info.get("lynx"),
            )
            for info in answers
        ]

    return ask
