"""A replica's ranks on the GPU path, in turn: SGLang's own MoE layers on CPU tensors.

Run by test_gpu_path.py in a process of its own, since Triton reads TRITON_INTERPRET once. Each rank
has what SGLang's loader and dispatcher leave it of one model. A model's all-reduce is a sum here; a
real one adds the ranks up in ``tests/e2e/test_ranks.py``, on the CPU path.
"""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.moe import topk as sglang_topk
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import derive_spawn_ranks, get_parallel

from lynx_kernels import fused_moe_reference
from lynx_sglang.gpu import expert_layers, fused_runner
from lynx_sglang.gpu.device_path import DevicePath, Sizes
from lynx_sglang.gpu.runtime import GpuBuilder
from lynx_sglang.integration import experts as expert_hooks
from lynx_sglang.integration import routing
from lynx_sglang.integration.model_runner import capture, forward
from lynx_sglang.integration.scheduler import process_result, receive
from lynx_sglang.integration.state import server_info
from lynx_sglang.settings import Settings

pytestmark = pytest.mark.usefixtures("one_rank", "cpu_for_gpu")
E, K, H, INNER = 16, 4, 32, 16
ROWS, GRAPH = 6, 8
SPREADS = [(2, 1), (2, 2), (4, 2)]  # tp_size, ep_size: slices, whole experts, slices of a half


class Rank:
    """One rank's MoE layer, hooked as the plugin hooks it, behind a scheduler."""

    def __init__(self, number: int, tp_size: int, ep_size: int) -> None:
        widths = {
            "attn_tp_size": tp_size,
            "moe_ep_size": ep_size,
            "moe_tp_size": tp_size // ep_size,
            "tp_size": tp_size,
        }
        ranks = derive_spawn_ranks(
            world_rank=number,
            tp_size=tp_size,
            ep_join_rank_offset=0,
            attn_cp_size=1,
            attn_tp_size=tp_size,
            moe_dp_size=1,
            moe_ep_size=ep_size,
        )
        self.place = {**widths, **ranks, "dp_rank": None}
        self.builder = GpuBuilder(Settings())
        rng = torch.Generator().manual_seed(0)  # the same model on every rank
        self.gate = torch.randn(E, H, generator=rng)
        self.hidden = torch.randn(GRAPH, H, generator=rng)
        with get_parallel().override(**self.place):
            self.experts = object.__new__(FusedMoE)
            expert_hooks.around_init(self.builder.add_expert_layer)(
                FusedMoE.__init__,
                self.experts,
                num_experts=E,
                hidden_size=H,
                intermediate_size=INNER,
                layer_id=0,
                top_k=K,
                params_dtype=torch.float32,
            )
        for expert in range(E):
            for shard, shape in (("w1", (INNER, H)), ("w3", (INNER, H)), ("w2", (H, INNER))):
                name = "w2_weight" if shard == "w2" else "w13_weight"
                parameter = getattr(self.experts, name)
                loaded = torch.randn(shape, generator=rng) / 5
                self.experts.weight_loader(parameter, loaded, f"{expert}.{name}", shard, expert)
        front = self.experts.quant_method.runner.fused_func
        assert isinstance(front, fused_runner.FusedRunner)
        front._original = self.plain  # SGLang's chain needs a GPU
        self.topk = sglang_topk.TopK(K, layer_id=0)
        self.scheduler = SimpleNamespace(
            forward_ct=0,
            enable_overlap=False,
            forward_stream_ctx=None,
            metrics_reporter=SimpleNamespace(enable_metrics=False),
            model_config=None,
            running_batch=batch_of(0),
            last_batch=None,
        )
        self.num_plain = 0  # calls of SGLang's own runner
        self.num_passes = 0
        graphs: Any = SimpleNamespace(capture_bs=[GRAPH])
        with get_parallel().override(**self.place):
            capture(self.builder)(lambda _graphs: self.forward(GRAPH), graphs)
        self.runtime = self.builder.start()

    def plain(self, dispatched: Any, quant_info: Any, _config: Any) -> Any:
        self.num_plain += 1
        weights, ids, _ = dispatched.topk_output
        w13, w2 = quant_info.w13_weight, quant_info.w2_weight
        assert ids.max() < len(w13)
        output = fused_moe_reference(dispatched.hidden_states, w13, w2, ids, weights)
        return SimpleNamespace(hidden_states=output)

    def forward(self, rows: int) -> None:
        """The layer, as a model calls it, up to the all-reduce."""
        select, hidden = routing.post_process_topk(self.builder), self.hidden[:rows]
        original = sglang_topk._post_process_topk_ids
        with pytest.MonkeyPatch.context() as patch, get_parallel().override(**self.place):
            patch.setattr(
                sglang_topk, "_post_process_topk_ids", lambda **call: select(original, **call)
            )
            routed = self.topk.forward_native(hidden, hidden @ self.gate.T)
            dispatched = self.experts.dispatcher.dispatch(hidden, routed)
            ran = self.experts.quant_method.forward_cuda(self.experts, dispatched)
        self.ids = routed.topk_ids.clone()  # of the model's experts
        self.is_mapped = not torch.equal(dispatched.topk_output.topk_ids, routed.topk_ids)
        self.output = ran.hidden_states.clone()

    def replay(self, _scheduler: Any, batch: Any) -> Any:
        self.scheduler.forward_ct += 1
        forward(self.builder)(self.run_once, batch)
        return SimpleNamespace()

    def run_once(self, batch: Any) -> Any:
        """A captured graph's launches, or Python where there is none."""
        self.num_passes += 1
        if not batch.forward_mode.is_decode():
            self.forward(len(batch.reqs))
        else:
            step, self.runtime.step = self.runtime.step, None
            with self.runtime.capturing():
                self.forward(GRAPH)
            self.runtime.step = step
        # As the logits after an all-gather, the same on every rank.
        logits = 1.0 * self.ids
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits))

    def run(self, mode: ForwardMode) -> int:
        """A step of ROWS requests; T."""
        batch = batch_of(ROWS, mode)
        with get_parallel().override(**self.place):
            result = self.runtime.run_batch(self.replay, self.scheduler, batch)
        process_result(self.builder)(lambda *_: None, self.scheduler, batch, result)
        self.scheduler.running_batch = self.scheduler.last_batch = batch
        return int(result.lynx_flight.step.num_active.get(0, 0))


class Replica:
    """Ranks in step, as SGLang's scheduler loops are."""

    def __init__(self, tp_size: int = 1, ep_size: int = 1) -> None:
        self.ranks = [Rank(number, tp_size, ep_size) for number in range(tp_size)]

    def run(self, mode: ForwardMode = ForwardMode.DECODE) -> tuple[torch.Tensor, torch.Tensor, int]:
        """A scheduler loop: the model's output [ROWS, H], ids [ROWS, K] and T."""
        carried = b""

        def carry(rank: int, local_reqs: list[Any] | None) -> list[Any]:
            nonlocal carried
            carried = carried if rank else pickle.dumps(local_reqs or [])
            return list(pickle.loads(carried))

        for number, rank in enumerate(self.ranks):
            assert receive(rank.builder)(carry, number) == []
        actives = {rank.run(mode) for rank in self.ranks}
        assert len(actives) == 1
        first = self.ranks[0]
        assert all(torch.equal(rank.ids, first.ids) for rank in self.ranks)
        output = torch.stack([rank.output for rank in self.ranks]).sum(0)
        return output[:ROWS], first.ids[:ROWS], actives.pop()

    def fix(self, budget: int, shadow_share: float = 0.0) -> None:
        """As /set_internal_state, which reaches every rank."""
        for rank in self.ranks:
            rank.builder.apply(Settings(budget=budget, shadow_share=shadow_share))


def batch_of(rows: int, mode: ForwardMode = ForwardMode.DECODE) -> Any:
    sampling = SimpleNamespace(custom_params=None)
    requests = [
        SimpleNamespace(rid=str(row), sampling_params=sampling, finished=lambda: False)
        for row in range(rows)
    ]
    return SimpleNamespace(
        forward_mode=mode,
        reqs=requests,
        seq_lens=torch.ones(rows),
        seq_lens_cpu=torch.ones(rows),
        launch_ts=0.0,
        after_idle_gap=False,
    )


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The experts that each launch of Lynx's kernels has read, as indices into w13."""
    experts: list[list[int]] = []
    original = fused_runner.fused_moe_triton

    def record(hidden: Any, w13: Any, w2: Any, schedule: Any, **options: Any) -> Any:
        experts.append(schedule.experts[: int(schedule.num_active)].tolist())
        return original(hidden, w13, w2, schedule, **options)

    monkeypatch.setattr(fused_runner, "fused_moe_triton", record)
    return experts


@pytest.mark.parametrize(("tp_size", "ep_size"), SPREADS)
def test_ranks_add_up_to_the_model_at_every_budget_of_one_capture(
    tp_size: int, ep_size: int
) -> None:
    replica, alone = Replica(tp_size, ep_size), Replica()
    for rank in replica.ranks:
        shape = (E // ep_size, 2 * INNER * ep_size // tp_size, H)
        assert rank.experts.w13_weight.shape == shape
    found = []
    for budget in (E, 7, 5):
        if budget < E:
            replica.fix(budget)
            alone.fix(budget)
        (output, ids, active), (expected, own, count) = replica.run(), alone.run()
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(ids, own)
        assert active == count
        found.append(active)
    assert found[0] > found[1] > found[2]
    assert sum(rank.num_plain for rank in replica.ranks) == 0
    assert server_info(replica.ranks[0].builder)["ranks"]["size"] == tp_size


def test_ranks_run_the_same_steps_twice() -> None:
    """A rank alone in its second pass would wait for the others' all-reduce for ever."""
    replica, alone = Replica(2, 1), Replica()
    passes = []
    for step in range(12):
        if step == 2:
            replica.fix(5, shadow_share=0.4)
            alone.fix(5)
        (output, ids, active), (expected, own, count) = replica.run(), alone.run()
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(ids, own)
        assert active == count
        first, second = (rank.num_passes for rank in replica.ranks)
        assert first == second
        passes.append(first)
    assert passes[-1] == 12 + 4
    assert [rank.runtime._sampler.count for rank in replica.ranks] == [10, 10]
    assert server_info(replica.ranks[0].builder)["shadow"]["steps"] == 4


@pytest.mark.parametrize(("tp_size", "ep_size"), SPREADS)
def test_a_rank_reads_its_own_active_experts_and_no_other(
    tp_size: int, ep_size: int, ran: list[list[int]]
) -> None:
    replica = Replica(tp_size, ep_size)
    replica.run()
    replica.fix(5)
    ran.clear()
    *_, active = replica.run()
    num_local = E // ep_size
    for rank, experts in zip(replica.ranks, ran, strict=True):
        assert not rank.is_mapped  # which would be a launch for nobody
        first = rank.place["moe_ep_rank"] * num_local
        used = rank.ids[(rank.ids >= first) & (rank.ids < first + num_local)]
        assert experts == (used.unique() - first).tolist()
    assert sum(map(len, ran)) * ep_size == active * tp_size


@pytest.mark.parametrize(("tp_size", "ep_size"), SPREADS)
def test_prefill_is_sglangs_on_ids_that_it_maps(tp_size: int, ep_size: int) -> None:
    replica, alone = Replica(tp_size, ep_size), Replica()
    replica.run()
    alone.run()
    replica.fix(5)
    alone.fix(5)
    output, ids, _ = replica.run(ForwardMode.EXTEND)
    expected, own, _ = alone.run(ForwardMode.EXTEND)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(ids, own)
    assert ids.unique().numel() > 5
    assert [rank.num_plain for rank in replica.ranks] == [1] * tp_size


def test_a_rank_without_an_active_expert_adds_zeros(ran: list[list[int]]) -> None:
    replica = Replica(2, 2)
    for rank in replica.ranks:
        rank.hidden[:] = rank.hidden[0]  # rows alike, which agree on their best expert
    replica.run()
    replica.fix(1)
    ran.clear()
    *_, active = replica.run()
    assert active == 1
    assert sorted(map(len, ran)) == [0, 1]
    for rank, experts in zip(replica.ranks, ran, strict=True):
        assert bool(experts) == bool(rank.output[:ROWS].any())


def test_fused_shared_experts_of_expert_parallel_ranks_stay_with_sglang(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They lie behind the routed ones on every rank: E / ep_size + 1 experts, no range of ids."""
    caplog.set_level("INFO", "lynx_sglang")
    layers, experts = expert_layers.ExpertLayers(), object.__new__(FusedMoE)
    widths = {"tp_size": 2, "attn_tp_size": 2, "moe_ep_size": 2}
    with get_parallel().override(**widths, moe_ep_rank=1):
        expert_hooks.around_init(layers.add)(
            FusedMoE.__init__,
            experts,
            num_experts=E + 1,
            num_fused_shared_experts=1,
            hidden_size=H,
            intermediate_size=INNER,
            layer_id=0,
            top_k=K + 1,
            params_dtype=torch.float32,
        )
    assert experts.w13_weight.shape[0] == E // 2 + 1
    layers.allocate(DevicePath(Sizes([0], E, 1, K, 1, 2), floor=1, policy="lynx", device="cpu"))
    assert "1 layers with triton: fused shared experts" in caplog.text
