"""T of ``/server_info`` against SGLang's own count of the same steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import SLEEPS, TOGETHER
from tests.e2e.forkserver import ForkedServer, ForkServer

pytestmark = pytest.mark.e2e

BUDGET = 16


def test_active_experts_are_those_of_sglangs_recorder(
    forks: ForkServer, model: Path, tmp_path: Path, prompts: list[str]
) -> None:
    recording = "--expert-distribution-recorder-mode=per_pass"
    options = (SLEEPS, TOGETHER, recording, "--moe-backend=lynx", "--lynx-budget=full")
    records = tmp_path / "records"
    greedy = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    with ForkedServer(
        forks,
        model,
        tmp_path / "log",
        options,
        SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR=str(records),
    ) as server:
        per_step = []
        for budget in (0, BUDGET):  # 0: full
            change = {"server_args": {"lynx_budget": budget}}
            assert server.post("/set_internal_state", change) == [True]
            server.post("/flush_cache", {})
            before = server.lynx()
            server.post("/start_expert_distribution_record", {})
            server.post("/generate", {"text": prompts[:8], "sampling_params": greedy})
            server.post("/stop_expert_distribution_record", {})
            after = server.lynx()
            server.post("/dump_expert_distribution_record", {})
            assert before is not None
            assert after is not None
            (file,) = records.iterdir()
            passes = torch.load(file, weights_only=False)["records"]
            file.unlink()

            num_steps = after["decode_steps"] - before["decode_steps"]
            prefills = after["steps"]["prefill"] - before["steps"]["prefill"]
            assert num_steps == 23
            assert len(passes) == prefills + num_steps
            counts = torch.stack([each["global_physical_count"] for each in passes[prefills:]])
            assert counts.shape == (num_steps, after["num_layers"], after["num_experts"])
            active = int((counts > 0).sum())
            counted = after["active_experts_sum"] - before["active_experts_sum"]
            assert counted * after["num_layers"] == active
            per_step.append(active / num_steps / after["num_layers"])
        assert per_step[1] <= BUDGET < per_step[0]
