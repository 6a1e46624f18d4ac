"""Two ranks of one replica in one process: their runtimes, their own clocks, SGLang's loop between.

What rank 0 sends is pickled on its way, as SGLang's broadcast does; the broadcast itself runs in
``tests/e2e/test_ranks.py``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_parallel
from transformers import PretrainedConfig

from lynx_controller import Batch, Phase
from lynx_sglang.cpu.runtime import CpuBuilder, CpuRuntime
from lynx_sglang.errors import DivergedError
from lynx_sglang.integration import model_runner, state
from lynx_sglang.integration.scheduler import receive, run_batch
from lynx_sglang.loop.ranks import CHECK_STEPS, PATIENCE, Order, Ranks
from lynx_sglang.loop.step import batch_ahead, size_class_of
from lynx_sglang.loop.tier import Tier
from lynx_sglang.settings import Settings

LAYERS, EXPERTS, TOP_K = 2, 32, 4
CONTROLLED = Settings(slo_itl_ms=10.0, min_retained_mass=0.3)


clock = SimpleNamespace(now_s=0.0)  # of both ranks, which run in turn


@pytest.fixture(autouse=True)
def _timed_by_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(monotonic=lambda: clock.now_s)
    monkeypatch.setattr("lynx_sglang.cpu.runtime.time", stand_in)


def request(rid: str, **params: Any) -> SimpleNamespace:
    sampling = SimpleNamespace(custom_params=params or None)
    return SimpleNamespace(rid=rid, sampling_params=sampling, finished=lambda: False)


def batch_of(requests: list[Any], mode: ForwardMode) -> SimpleNamespace:
    return SimpleNamespace(
        forward_mode=mode,
        reqs=list(requests),
        decoding_reqs=None,
        chunked_req=None,
        seq_lens=torch.ones(len(requests)),
        seq_lens_cpu=torch.ones(len(requests)),
        launch_ts=clock.now_s,
        after_idle_gap=False,
    )


class Rank:
    """One rank's scheduler: real selection and control, a router of random scores."""

    def __init__(self, rank: int, settings: Settings, seed: int = 0) -> None:
        self.rank, self.seed = rank, seed
        self.builder = CpuBuilder(settings)
        for layer in range(LAYERS):
            self.builder.add_layer(
                SimpleNamespace(
                    layer_id=layer, num_experts=EXPERTS, num_fused_shared_experts=0, top_k=TOP_K
                )
            )
        self.forward_ct = 0
        self.running_batch = batch_of([], ForwardMode.DECODE)
        self.last_batch: Any = None
        self.chunked_req = None
        self.waiting_queue: list[Any] = []
        self.model_config = SimpleNamespace(
            hf_config=PretrainedConfig(), linear_attn_registry_result=None
        )
        self.metrics_reporter = SimpleNamespace(enable_metrics=False)
        self.routed: list[torch.Tensor] = []  # ids [M, K] of each pass and layer

    @property
    def runtime(self) -> CpuRuntime:
        assert self.builder.runtime is not None
        return self.builder.runtime

    def run(self, requests: list[Any], mode: ForwardMode = ForwardMode.DECODE) -> None:
        self.routed = []
        batch = batch_of(requests, mode)
        with get_parallel().override(tp_rank=self.rank, tp_size=2, moe_ep_size=1, dp_rank=None):
            run_batch(self.builder)(self.forward, self, batch)
        self.last_batch = batch
        if mode is ForwardMode.DECODE:
            self.running_batch = batch

    def forward(self, _scheduler: Any, batch: Any) -> Any:
        self.forward_ct += 1
        return model_runner.forward(self.builder)(self.model, batch)

    def model(self, batch: Any) -> Any:
        generator = torch.Generator().manual_seed(self.forward_ct + self.seed)
        logits = torch.zeros(len(batch.reqs), EXPERTS)
        for layer in range(LAYERS):
            scores = torch.rand(len(batch.reqs), EXPERTS, generator=generator).softmax(-1)
            weights, ids = scores.topk(TOP_K)
            out = self.runtime.select(layer, ids, weights, lambda s=scores: s, None)
            self.routed.append(ids if out is None else out[0])
            logits.scatter_add_(1, ids.long(), weights)
        num_active = sum(ids.unique().numel() for ids in self.routed[-LAYERS:])
        clock.now_s += 0.001 + 0.0001 * num_active
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits))


class Replica:
    """Two ranks in step, as SGLang's scheduler loops are."""

    def __init__(self, settings: Settings, other: Settings | None = None, seed: int = 0) -> None:
        self.ranks = [Rank(0, settings), Rank(1, other or settings, seed)]
        self.sent: list[Order] = []
        self.is_skipping = False  # the broadcast, as --scheduler-recv-interval does
        self.answers: list[bool] = []  # of a collective, for the ranks that come to it later

    def is_any(self, _differs: bool) -> bool:
        """The answer of the ranks' collective to each of them; rank 0 comes first."""
        if self.answers:
            return self.answers.pop()
        first, second = (rank.runtime.ranks for rank in self.ranks)
        answer = (first._steps, first._checksum) != (second._steps, second._checksum)
        self.answers.append(answer)
        return answer

    def loop(self, requests: list[Any], mode: ForwardMode = ForwardMode.DECODE) -> None:
        carried = b""

        def send(_receiver: Any, local_reqs: list[Any] | None) -> list[Any]:
            nonlocal carried
            if self.is_skipping:
                carried = pickle.dumps([])
                return []
            carried = pickle.dumps(["a request", *(local_reqs or [])])
            self.sent += local_reqs or []
            return ["a request", *(local_reqs or [])]

        def take(_receiver: Any, local_reqs: list[Any] | None) -> list[Any]:
            assert not local_reqs  # only rank 0 has something to say
            return list(pickle.loads(carried))

        for rank, carry in zip(self.ranks, (send, take), strict=True):
            if rank.builder.runtime is not None:
                rank.runtime.ranks._is_any = self.is_any
            received = receive(rank.builder)(carry, None)
            assert received == ([] if self.is_skipping else ["a request"])
        for rank in self.ranks:
            rank.run(requests, mode)

    def serve(self, rows: list[int], **params: Any) -> list[float]:
        """A prefill, then decode steps of so many rows; the share that each ran under."""
        running: list[Any] = []
        shares = []
        for count in rows:
            for one in running[count:]:
                one.finished = lambda: True
            del running[count:]
            if new := [request(str(row), **params) for row in range(len(running), count)]:
                self.loop(new, ForwardMode.EXTEND)
                running += new
            self.loop(running)
            first, second = self.ranks
            assert first.runtime.decision == second.runtime.decision
            assert len(first.routed) == len(second.routed)
            for ours, theirs in zip(first.routed, second.routed, strict=True):
                assert torch.equal(ours, theirs)
            decision = first.runtime.decision
            assert decision is not None
            shares.append(decision.share)
        return shares


def test_ranks_run_the_same_experts_while_the_budget_moves() -> None:
    replica = Replica(CONTROLLED)
    shares = replica.serve([4] * 20 + [24] * 60 + [2] * 20)
    assert len(set(shares)) > 3
    assert min(shares) < 0.8
    told = state.server_info(replica.ranks[0].builder)["ranks"]
    assert (told["size"], told["unforeseen"]) == (2, 0)
    assert told["orders"] == len(replica.sent) > 5
    assert replica.ranks[1].runtime.ranks.state()["checks"] == 100 // CHECK_STEPS


def test_a_fixed_budget_holds_from_the_first_decode_step() -> None:
    replica = Replica(Settings(budget=8))
    replica.serve([12])
    assert all(ids.unique().numel() <= 12 for ids in replica.ranks[1].routed)


def test_what_does_not_change_is_not_sent_except_for_a_check() -> None:
    replica = Replica(Settings(budget=8))
    replica.serve([4] * (2 * CHECK_STEPS + 2))
    assert [order.steps for order in replica.sent] == [0, CHECK_STEPS, 2 * CHECK_STEPS]


def test_rank_0_alone_decides_and_tells(tmp_path: Path) -> None:
    settings = Settings(
        slo_itl_ms=3.0,
        decision_log=str(tmp_path / "log"),
        store=f"sqlite:///{tmp_path / 'fleet.db'}",
    )
    replica = Replica(settings)
    replica.serve([4] * 5)
    first, second = (rank.runtime for rank in replica.ranks)
    assert first.control is not None
    assert first.control.replica is not None
    first.control.replica.close()
    assert second.control is None
    assert state.server_info(replica.ranks[0].builder)["decode_steps"] == 5
    info = state.server_info(replica.ranks[1].builder)
    assert (info["controller"], info["fleet"], info["decode_steps"]) == (None, None, 0)
    assert (tmp_path / "log").read_text().count('"lynx_log"') == 1


def test_a_skipped_broadcast_leaves_all_ranks_as_they_are() -> None:
    replica = Replica(Settings())
    replica.serve([8] * 3)
    for rank in replica.ranks:  # as /set_internal_state, which reaches every rank in one loop
        rank.builder.apply(Settings(budget=8, floor=2))
    replica.is_skipping = True
    assert replica.serve([8] * 3) == [1.0] * 3
    assert all(ids.unique().numel() > 8 for ids in replica.ranks[0].routed)
    replica.is_skipping = False
    replica.serve([4])
    assert [rank.runtime.decision.budget for rank in replica.ranks] == [(8,) * LAYERS] * 2
    assert [int(rank.runtime.buffer.floor) for rank in replica.ranks] == [2, 2]


def test_exact_requests_and_shadow_passes_are_the_same_everywhere() -> None:
    replica = Replica(Settings(budget=8, shadow_share=0.5))
    replica.serve([8] * 10)
    assert replica.ranks[1].runtime._sampler.count == 10
    assert replica.ranks[0].runtime.telemetry.shadow.steps == 5
    replica.serve([8] * 3, lynx="exact")
    assert all(ids.unique().numel() > 8 for ids in replica.ranks[1].routed)


def parted() -> tuple[Replica, list[Any]]:
    """Ranks whose routers see other scores, at their first check."""
    replica = Replica(Settings(demand=0.6), seed=1)
    requests = [request(str(row)) for row in range(8)]
    replica.loop(requests, ForwardMode.EXTEND)
    for _step in range(CHECK_STEPS + 1):
        replica.loop(requests)
    return replica, requests


def test_ranks_that_part_run_every_expert_until_they_agree(
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica, requests = parted()
    for rank in replica.ranks:
        assert rank.runtime.decision.demand == float(rank.runtime.buffer.demand) == 1.0
        assert rank.runtime.ranks.state()["mismatches"] == 1
    assert "rank 1 has run other experts than rank 0: after 32" in caplog.text
    replica.ranks[1].seed = 0
    for _step in range(2 * CHECK_STEPS):  # the first of them ends with a step of before
        replica.loop(requests)
    assert [rank.runtime.decision.demand for rank in replica.ranks] == [0.6] * 2
    told = state.server_info(replica.ranks[0].builder)["ranks"]
    assert (told["checks"], told["mismatches"]) == (3, 2)


def test_orders_under_a_mismatch_cut_nothing() -> None:
    replica, requests = parted()
    for rank in replica.ranks:
        rank.builder.apply(Settings(demand=0.5))
    replica.loop(requests)
    assert replica.sent[-1].decision.demand == 0.5
    assert [rank.runtime.decision.demand for rank in replica.ranks] == [1.0] * 2


def test_ranks_that_stay_parted_are_an_error() -> None:
    replica, requests = parted()
    for _step in range(CHECK_STEPS * (PATIENCE - 1) - 1):
        replica.loop(requests)
    with pytest.raises(DivergedError, match=f"in {PATIENCE} checks in a row"):
        replica.loop(requests)
    assert replica.ranks[0].runtime.ranks.mismatches == PATIENCE


@pytest.mark.parametrize(
    "other", [Settings(policy="topk"), Settings(default_tier="exact"), Settings(shadow_share=0.1)]
)
def test_ranks_that_are_set_otherwise_are_an_error(other: Settings) -> None:
    replica = Replica(Settings(), other)
    with pytest.raises(DivergedError, match="rank 1 is set to"):
        replica.serve([4])


def test_a_single_rank_sends_nothing() -> None:
    replica = Replica(CONTROLLED)
    builder = replica.ranks[0].builder
    with get_parallel().override(tp_rank=0, tp_size=1, moe_ep_size=1, dp_rank=None):
        runtime = builder.start()
    runtime.begin(replica.ranks[0], batch_of([request("a")], ForwardMode.DECODE))
    assert runtime.ranks.is_alone
    assert receive(builder)(lambda _receiver, local_reqs: list(local_reqs or []), None) == []


def test_the_checksum_is_of_every_layer_and_step() -> None:
    def checksum(steps: list[tuple[int, list[int]]]) -> int:
        ranks = Ranks(0, 2)
        for step, num_active in steps:
            ranks.note(step, num_active)
        return ranks._checksum

    told = [(1, [4, 5]), (2, [6, 7])]
    assert checksum(told) == checksum(told)
    for other in ([(1, [4, 5]), (3, [6, 7])], [(1, [5, 4]), (2, [6, 7])], told[:1]):
        assert checksum(other) != checksum(told)


def finished(rid: str) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(request(rid)), "finished": lambda: True})


@pytest.mark.parametrize(
    ("running", "last", "mode", "expected"),
    [
        (["a", "b"], None, None, (2, 2)),
        (["a", "b"], ["a", "b"], ForwardMode.DECODE, (2, 2)),  # they are the running ones
        (["a", "b"], ["c"], ForwardMode.EXTEND, (3, 3)),
        ([], ["a", "chunk"], ForwardMode.EXTEND, (1, 1)),  # its prefill goes on
        ([], ["a", "b", "c"], ForwardMode.MIXED, (3, 3)),
        (["a", "done"], ["HEALTH_CHECK_1"], ForwardMode.EXTEND, (2, 1)),
    ],
)
def test_the_next_batch_is_foreseen(
    running: list[str], last: list[str] | None, mode: Any, expected: tuple[int, int]
) -> None:
    make: Callable[[str], Any] = lambda rid: finished(rid) if rid == "done" else request(rid)  # noqa: E731
    requests = {rid: make(rid) for rid in (*running, *(last or []))}
    last_batch = None
    if last is not None:
        last_batch = batch_of([requests[rid] for rid in last], mode)
        last_batch.chunked_req = requests.get("chunk")
    scheduler = SimpleNamespace(
        running_batch=batch_of([requests[rid] for rid in running], ForwardMode.DECODE),
        last_batch=last_batch,
        chunked_req=requests.get("chunk"),
    )
    assert batch_ahead(scheduler, Tier.FLEXIBLE, size_class_of) == Batch(
        Phase.DECODE, *expected, size_class_of(expected[0])
    )


@pytest.mark.parametrize(
    ("size", "ep_size", "spread"),
    [(1, 1, ""), (2, 1, "x 2"), (4, 2, "x 4, experts over 2")],
)
def test_only_replicas_that_lie_alike_share_costs(size: int, ep_size: int, spread: str) -> None:
    assert Ranks(0, size, ep_size).spread == spread
