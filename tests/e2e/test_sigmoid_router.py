"""A model with DeepSeek-V3's router: sigmoid, correction bias, groups, a shared expert, scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import checkpoint
from models.decoding import complete
from models.tasks import is_correct, problems
from models.vocabulary import chat_prompt
from tests.e2e.forkserver import ForkedServer, ForkServer

pytestmark = pytest.mark.e2e

MODEL = Path(__file__).parents[2] / "models" / "lynx-moe-sigmoid"
BUDGET = 24


def test_full_budget_is_the_model_itself_and_a_budget_holds(
    forks: ForkServer, tmp_path: Path, generate: Callable[..., list[Any]]
) -> None:
    asked = [problem for task in ("math", "code") for problem in problems(task, "test", 8, seed=5)]
    prompts = [chat_prompt(problem.prompt) for problem in asked]
    model, tokenizer = checkpoint.load(MODEL)
    expected = complete(model, tokenizer, [problem.prompt for problem in asked])
    options = ("--sleep-on-idle", "--moe-backend=lynx", "--lynx-budget=full")
    with ForkedServer(forks, MODEL, tmp_path / "log", options) as server:
        whole = generate(server, prompts)
        texts = [tokenizer.decode(answer.tokens) for answer in whole]
        assert texts == expected
        assert not any(answer.report["degraded"] for answer in whole)
        before = server.lynx()
        assert before is not None

        assert server.post(
            "/set_internal_state", {"server_args": {"lynx_budget": BUDGET, "lynx_floor": 1}}
        ) == [True]
        server.post("/flush_cache", {})
        cut = generate(server, prompts)
        after = server.lynx()
        assert after is not None
    steps = after["decode_steps"] - before["decode_steps"]
    active = (after["active_experts_sum"] - before["active_experts_sum"]) / steps
    assert 0 < active <= BUDGET < before["active_experts_sum"] / before["decode_steps"]
    assert all(answer.report["degraded"] for answer in cut)
    right = [
        sum(is_correct(p, tokenizer.decode(a.tokens)) for p, a in zip(asked, answers, strict=True))
        for answers in (whole, cut)
    ]
    assert right[1] >= right[0] - 3
