"""The GPU's two loops on CPU tensors, kernels interpreted, in front of SGLang's own MoE layers.

Run by test_gpu_path.py in a process of its own, since Triton reads TRITON_INTERPRET once. What a
replayed graph does is stood in for by the captured launches, run again: they read nothing but the
buffer's memory. Streams, pinned memory and real graphs are left to a GPU.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt import runtime_context
from sglang.srt.layers.moe import topk as sglang_topk
from sglang.srt.layers.moe.fused_moe_native import moe_forward_native
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.utils import MoeRunnerBackend
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from lynx_controller import Phase
from lynx_kernels import RowClass, fused_moe_reference, select
from lynx_sglang.errors import DivergedError, LynxError, UnsupportedError
from lynx_sglang.gpu import fused_runner
from lynx_sglang.gpu.runtime import GpuBuilder
from lynx_sglang.integration import experts as expert_hooks
from lynx_sglang.integration import routing
from lynx_sglang.integration.model_runner import capture, capture_prefill, forward
from lynx_sglang.integration.scheduler import process_result, receive
from lynx_sglang.integration.state import server_info
from lynx_sglang.loop.ranks import Ranks
from lynx_sglang.loop.tier import account_of
from lynx_sglang.settings import Settings

pytestmark = pytest.mark.usefixtures("one_rank", "cpu_for_gpu")
LAYERS, E, K, H, INNER = 2, 16, 4, 32, 16
SHARPNESS = 20.0  # of the logits, so that a cut shows in them
GRAPHS = [4, 8]
PREFILL_GRAPHS = [16]  # in tokens


class Model:
    """Real MoE layers, hooked as the plugin hooks them, behind a scheduler that overlaps."""

    def __init__(
        self,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        num_shared: int = 0,
        graphs: list[int] = GRAPHS,
        prefill_graphs: list[int] | None = None,
    ) -> None:
        self.builder = GpuBuilder(settings)
        build = expert_hooks.around_init(self.builder.add_expert_layer)
        select = routing.post_process_topk(self.builder)
        post_process = sglang_topk._post_process_topk_ids
        monkeypatch.setattr(
            sglang_topk, "_post_process_topk_ids", lambda **call: select(post_process, **call)
        )
        rng = torch.Generator().manual_seed(0)
        self.gates = [torch.randn(E, H, generator=rng) for _ in range(LAYERS)]
        self.experts, self.topks = [], []
        self.num_shared = num_shared  # experts that every row has, in slots of their own
        self.num_plain = 0  # calls of SGLang's own runner
        self.passes: list[int] = []  # rows of each
        self.outputs: dict[int, torch.Tensor] = {}  # logits by rows of a forward, in one place
        for layer in range(LAYERS):
            experts = object.__new__(FusedMoE)
            build(
                FusedMoE.__init__,
                experts,
                num_experts=E + num_shared,
                num_fused_shared_experts=num_shared,
                hidden_size=H,
                intermediate_size=INNER,
                layer_id=layer,
                top_k=K + num_shared,
                params_dtype=torch.float32,
            )
            for weight in (experts.w13_weight, experts.w2_weight):
                weight.data.normal_(generator=rng, std=0.2)
            topk = sglang_topk.TopK(K, layer_id=layer)
            expert_hooks.bind_backend(
                sglang_topk.TopK.bind_runner_backend, topk, experts.runner_backend
            )
            front = experts.quant_method.runner.fused_func
            assert isinstance(front, fused_runner.FusedRunner)
            front._original = self.plain  # SGLang's chain needs a GPU
            self.experts.append(experts)
            self.topks.append(topk)
        self.scheduler = SimpleNamespace(
            forward_ct=0,
            enable_overlap=False,
            forward_stream_ctx=None,
            metrics_reporter=SimpleNamespace(enable_metrics=False),
            model_config=None,
        )
        self.routed: list[torch.Tensor] = []
        self.graphs = graphs
        self.prefill_graphs = prefill_graphs or []
        if prefill_graphs is not None:  # SGLang captures them first
            capture_prefill(self.builder)(
                lambda _runner: [self.forward(size) for size in prefill_graphs],
                SimpleNamespace(capture_num_tokens=prefill_graphs),
            )
        capture(self.builder)(
            lambda _runner: [self.forward(size) for size in graphs],
            SimpleNamespace(capture_bs=graphs),
        )
        self.runtime = self.builder.start()

    def plain(self, dispatch_output: Any, quant_info: Any, config: Any) -> Any:
        self.num_plain += 1
        weights, ids, _ = dispatch_output.topk_output
        w13, w2 = quant_info.w13_weight, quant_info.w2_weight
        output = fused_moe_reference(dispatch_output.hidden_states, w13, w2, ids, weights)
        return SimpleNamespace(hidden_states=output)

    def forward(self, rows: int) -> torch.Tensor:
        """The layers in turn, each on a hidden state of its own; logits [rows, H]."""
        self.passes.append(rows)
        self.routed = []
        logits = self.outputs.setdefault(rows, torch.empty(rows, H)).zero_()
        rng = torch.Generator().manual_seed(rows)
        for gate, topk, experts in zip(self.gates, self.topks, self.experts, strict=True):
            hidden = torch.randn(rows, H, generator=rng)
            routing_ = self.route(topk, hidden, hidden @ gate.T)
            dispatched = experts.dispatcher.dispatch(hidden, routing_)
            ran = experts.quant_method.forward_cuda(experts, dispatched).hidden_states
            expected = hidden.new_zeros(rows, H)
            live = routing_.topk_weights.any(dim=1)
            expected[live] = moe_forward_native(
                experts,
                hidden[live],
                routing_._replace(
                    topk_ids=routing_.topk_ids[live], topk_weights=routing_.topk_weights[live]
                ),
                experts.moe_runner_config,
            )
            torch.testing.assert_close(ran, expected, rtol=1e-5, atol=1e-5)
            self.routed.append(routing_.topk_ids.clone())
            logits += SHARPNESS * ran
        return logits

    def route(self, topk: Any, hidden: torch.Tensor, logits: torch.Tensor) -> Any:
        if not self.num_shared:
            return topk.forward_native(hidden, logits)
        # As SGLang's grouped top-k ends, which needs a GPU.
        weights, ids = logits.softmax(-1).topk(K)
        shared = torch.arange(E, E + self.num_shared).expand(len(hidden), -1)
        ids, weights, *_ = sglang_topk._post_process_topk_ids(
            topk_ids=torch.cat([ids, shared], dim=1).int(),
            topk_weights=torch.cat([weights, torch.full(shared.shape, 0.4)], dim=1),
            topk_config=topk.topk_config,
            router_logits=logits,
            layer_id=topk.layer_id,
            num_token_non_padded=None,
            expert_location_dispatch_info=None,
        )
        return sglang_topk.StandardTopKOutput(weights, ids, logits)

    def launch(
        self, requests: list[Any], mode: ForwardMode = ForwardMode.DECODE, prompt: int = 0
    ) -> Any:
        """``prompt``: tokens of a prompt that a mixed batch prefills before its requests' rows."""
        batch = SimpleNamespace(
            forward_mode=mode,
            reqs=requests,
            decoding_reqs=requests,
            extend_lens=[prompt] + [1] * len(requests),
            seq_lens=torch.ones(len(requests)),
            seq_lens_cpu=torch.ones(len(requests)),
            launch_ts=0.0,
            after_idle_gap=False,
        )
        return batch, self.runtime.run_batch(self.replay, self.scheduler, batch)

    def replay(self, _scheduler: Any, batch: Any) -> Any:
        self.scheduler.forward_ct += 1
        return SimpleNamespace(ran=forward(self.builder)(self.run_once, batch))

    def run_once(self, batch: Any) -> Any:
        """A graph of the next size where there is one; else Python runs the layers."""
        is_mixed, is_decode = batch.forward_mode.is_mixed(), batch.forward_mode.is_decode()
        rows = sum(batch.extend_lens) if is_mixed else len(batch.reqs)
        graphs = self.graphs if is_decode else self.prefill_graphs
        if (size := next((size for size in graphs if rows <= size), None)) is not None:
            step, self.runtime.step = self.runtime.step, None
            with self.runtime.capturing(Phase.DECODE if is_decode else Phase.MIXED):
                logits = self.forward(size)
            self.runtime.step = step
        else:
            logits = self.forward(rows)
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits[:rows]))

    def finish(self, launched: Any) -> None:
        process_result(self.builder)(lambda *_: None, self.scheduler, *launched)


@pytest.fixture
def model_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda num_shared=0, **settings: Model(Settings(**settings), monkeypatch, num_shared)


@pytest.fixture
def mixing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server was started with --enable-mixed-chunk."""
    args = runtime_context.get_server_args()
    asked = {"enable_mixed_chunk": True, "chunked_prefill_size": 32}
    read = {name: getattr(args, name) for name in ("max_running_requests", "moe_runner_backend")}
    mixing = SimpleNamespace(**read, **asked)
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: mixing)


def requests_of(count: int, **params: Any) -> list[Any]:
    sampling = SimpleNamespace(custom_params=params or None)
    return [SimpleNamespace(rid=str(i), sampling_params=sampling) for i in range(count)]


def own_routing(model: Model, rows: int, live: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(rows)
    hidden = [torch.randn(rows, H, generator=rng) for _ in range(LAYERS)]
    return [
        (x @ gate.T).softmax(-1).topk(K).indices[:live]
        for x, gate in zip(hidden, model.gates, strict=True)
    ]


def test_a_schedule_that_no_runner_took_is_not_the_next_steps(model_of: Any) -> None:
    """As a forward that fails between selection and its experts leaves it."""
    model = model_of()
    path = model.runtime.path
    model.finish(model.launch(requests_of(3)))
    left = path._outputs[0][0].view(4)
    path.hand_over(0, left.schedule, left.topk_weights)
    model.finish(model.launch(requests_of(3)))
    assert path.take(0, left.topk_weights) is None


def test_weights_that_change_after_selection_stay_with_sglangs_runner(
    model_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """step3p5 and xllm scale them, qwen2_moe appends a shared expert's."""
    path = model_of().runtime.path
    selected = path._outputs[0][0].view(4)
    weights = selected.topk_weights
    for changed in (weights * 2.0, torch.cat([weights, weights[:, :1]], dim=1), weights[:, :-1]):
        path.hand_over(0, selected.schedule, weights)
        assert path.take(0, changed) is None
    assert caplog.text.count("MoE layer 0 changes its routing after selection") == 1
    path.hand_over(0, selected.schedule, weights)
    assert path.take(0, weights) is selected.schedule


@pytest.mark.parametrize(("version", "least"), [("0.5.22", 0), ("0.5.23", -1)])
def test_sglangs_runners_get_no_empty_slots_where_they_cannot_read_them(
    version: str, least: int, model_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang 0.5.22 would read the weights of an expert -1 for a padding row or a lost slot."""
    monkeypatch.setattr("lynx_sglang.sglang_names.sglang_version", lambda: version)
    model = model_of(budget=5)
    model.runtime.path.fronted.discard(1)  # as with a format that Lynx's kernels do not take
    model.finish(model.launch(requests_of(3)))
    assert model.routed[0].min() == -1  # Lynx's kernels read the schedule
    assert model.routed[1].min() == least


def test_a_rescaled_layer_gets_no_empty_slots_either(
    model_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lynx_sglang.sglang_names.sglang_version", lambda: "0.5.22")
    experts = model_of().experts[0]
    front = experts.quant_method.runner.fused_func
    monkeypatch.setattr(front, "_original", lambda given, *_rest: given.topk_output.topk_ids)
    ids = torch.tensor([[3, -1, 2, -1]], dtype=torch.int32)
    routed = sglang_topk.StandardTopKOutput(torch.ones(1, K), ids, torch.ones(1, E))
    given = experts.dispatcher.dispatch(torch.ones(1, H), routed)
    assert front(given, None, None).tolist() == [[3, 0, 2, 0]]


def test_a_layer_that_does_not_select_stops_the_server(model_of: Any) -> None:
    model = model_of()
    model.finish(model.launch(requests_of(3)))
    model.runtime.require_selection([3, 4])
    model.runtime.path._selected[4].discard(1)
    with pytest.raises(LynxError, match="MoE layers 1 do not select in steps of 4 rows"):
        model.runtime.require_selection([4])


def test_full_budget_is_the_identity_and_padding_is_empty(model_of: Any) -> None:
    model = model_of()
    launched = model.launch(requests_of(3))
    for ids, own in zip(model.routed, own_routing(model, 4, 3), strict=True):
        assert torch.equal(ids[:3].sort().values, own.int().sort().values)
        assert (ids[3:] == -1).all()
    model.finish(launched)
    info = server_info(model.builder)
    expected = sum(own.unique().numel() for own in own_routing(model, 4, 3)) / LAYERS
    assert info["active_experts_sum"] == expected
    assert info["retained_mass_sum"] == 1.0
    assert model.num_plain == 0


def test_one_capture_follows_budget_rows_and_tiers(model_of: Any) -> None:
    model = model_of(budget=5)
    for rows in (8, 2, 7):  # fewer rows after more: the old ones must be padding
        model.finish(model.launch(requests_of(rows)))
        size = 4 if rows <= 4 else 8
        for ids in model.routed:
            assert ids.shape == (size, K)
            assert (ids[rows:] == -1).all()
            assert ids[ids >= 0].unique().numel() <= max(5, rows)
    exact = requests_of(8, lynx="exact")
    model.finish(model.launch(exact))
    for ids, own in zip(model.routed, own_routing(model, 8, 8), strict=True):
        assert torch.equal(ids.sort().values, own.int().sort().values)
    model.builder.apply(Settings(budget="full"))
    model.finish(model.launch(requests_of(8)))
    for ids, own in zip(model.routed, own_routing(model, 8, 8), strict=True):
        assert torch.equal(ids.sort().values, own.int().sort().values)
    assert [account_of(one).degraded_tokens for one in exact] == [0] * 8


def test_a_calibrated_server_keeps_the_experts_that_weigh(
    model_of: Any, calibrated: Callable[[list[list[float]]], Path]
) -> None:
    odd = {}
    for file in (None, str(calibrated([[0.0, 1.0] * (E // 2)] * LAYERS))):
        model = model_of(budget=4, floor=0, calibration=file)
        model.finish(model.launch(requests_of(8)))
        kept = torch.cat([ids[ids >= 0].unique() for ids in model.routed])
        odd[file is not None] = float((kept % 2).float().mean())
    assert odd[False] < 0.7 < odd[True]


@pytest.mark.parametrize("num_shared", [1, 2])
def test_fused_shared_experts_run_beside_any_budget_and_are_not_counted(
    model_of: Any, num_shared: int
) -> None:
    """`forward` holds what ran against all experts that the rows have, shared ones included."""
    model = model_of(num_shared, budget=5)
    model.finish(model.launch(requests_of(8)))
    for ids in model.routed:
        assert (ids[:, K:] == torch.arange(E, E + num_shared)).all()
        assert ids[:, :K].unique().numel() <= 8
    counted = sum(ids[:, :K].unique().numel() for ids in model.routed) / LAYERS
    assert server_info(model.builder)["active_experts_sum"] == counted
    assert model.num_plain == 0


def test_an_overlapped_step_is_accounted_under_its_own_decision(model_of: Any) -> None:
    model = model_of(budget=5)
    requests = requests_of(8)
    first = model.launch(requests)
    model.builder.apply(Settings(budget="full"))
    second = model.launch(requests)  # before the first one's result
    model.finish(first)
    assert all(account_of(one).decode_tokens == 1 for one in requests)
    assert any(account_of(one).degraded_tokens for one in requests)
    cut = server_info(model.builder)["active_experts_sum"]
    model.finish(second)
    assert server_info(model.builder)["active_experts_sum"] > 2 * cut
    assert first[1].lynx_flight.ran_under.budget == (5,) * LAYERS
    assert second[1].lynx_flight.ran_under.budget == (E,) * LAYERS


def test_a_following_rank_runs_each_overlapped_step_under_rank_0s_order(
    model_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "of_process", lambda: Ranks(1, 2))
    monkeypatch.setattr("lynx_sglang.loop.ranks.CHECK_STEPS", 2)
    model, leader = model_of(), Ranks(0, 2)
    requests, runtime = requests_of(8), model.runtime
    first = model.launch(requests)
    assert runtime.control is None

    def receive_order(budget: int) -> None:
        decision = dataclasses.replace(runtime.decision, budget=(budget,) * LAYERS)
        order = leader.order(decision, runtime.settings)
        assert receive(model.builder)(lambda *_: [order], None) == []

    receive_order(5)  # before the first one's result
    second = model.launch(requests)
    for launched, budget in ((first, E), (second, 5)):
        model.finish(launched)
        flight = launched[1].lynx_flight
        assert flight.ran_under.budget == (budget,) * LAYERS
        leader.note(flight.step.number, list(flight.step.num_active.values()))
    assert sum(second[1].lynx_flight.step.num_active.values()) <= 8 * LAYERS
    receive_order(6)
    ranks = runtime.ranks
    assert (ranks.checks, ranks.mismatches) == (1, 0)
    leader._checked_at, leader._checksum = ranks._checked_at, 0  # as its own check leaves it
    for step in (3, 5, 7):  # that this rank has not run
        leader.note(step, [E] * LAYERS)
        leader.note(step + 1, [E] * LAYERS)
        with pytest.raises(DivergedError) if step == 7 else nullcontext():
            receive_order(step)
    assert ranks.mismatches == 3


def test_prefill_is_sglangs_and_larger_decode_steps_run_without_a_graph(model_of: Any) -> None:
    model = model_of(budget=5)
    model.finish(model.launch(requests_of(6), ForwardMode.EXTEND))
    assert model.num_plain == LAYERS
    for ids, own in zip(model.routed, own_routing(model, 6, 6), strict=True):
        assert torch.equal(ids.sort().values, own.int().sort().values)
    model.finish(model.launch(requests_of(12)))
    assert model.num_plain == LAYERS
    assert all(ids.unique().numel() <= 12 for ids in model.routed)
    assert server_info(model.builder)["decode_steps"] == 1


def test_steps_above_the_most_rows_are_left_alone_and_said(
    model_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(budget=5)
    model.runtime.path.max_rows = 8
    for _ in range(2):
        model.finish(model.launch(requests_of(12)))
    assert model.num_plain == 2 * LAYERS
    assert server_info(model.builder)["decode_steps"] == 0
    assert caplog.text.count("256 rows runs every expert: lynx selects in up to 8") == 1


@pytest.mark.parametrize("graphs", [[8], [8, 320]], ids=["eager", "graph"])
def test_a_cap_holds_above_256_rows(graphs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(Settings(budget=5, floor=0), monkeypatch, graphs=graphs)
    model.num_plain = 0
    requests = requests_of(300)
    model.finish(model.launch(requests))
    for ids in model.routed:
        assert ids[:300].unique().numel() == 5
        assert (ids[300:] == -1).all()
    assert model.num_plain == LAYERS  # SGLang's runner, on the experts that are left
    info = server_info(model.builder)
    assert (info["decode_steps"], info["active_experts_sum"]) == (1, 5.0)
    assert all(account_of(one).degraded_tokens == 1 for one in requests)
    model.finish(model.launch(requests_of(4)))  # and those below are scheduled again
    assert model.num_plain == LAYERS


def logits_of(launched: Any) -> torch.Tensor:
    logits: torch.Tensor = launched[1].ran.logits_output.next_token_logits
    return logits


@pytest.mark.parametrize("rows", [3, 8, 12], ids=["padded graph", "graph", "eager"])
def test_a_shadowed_step_runs_twice_and_is_served_as_without(model_of: Any, rows: int) -> None:
    full = logits_of(model_of(budget="full").launch(requests_of(rows))).log_softmax(-1)
    found = {}
    for share in (0.0, 1.0):
        model = model_of(budget=5, floor=0, shadow_share=share)
        requests = [*requests_of(1, lynx="exact"), *requests_of(rows - 1)]
        model.passes.clear()
        launched = model.launch(requests)
        logits, routed, passes = logits_of(launched).clone(), model.routed, list(model.passes)
        model.finish(launched)
        found[share] = (logits, routed, [account_of(one).degraded_tokens for one in requests])
        info = server_info(model.builder)
        sums = {name: info[name] for name in ("active_experts_sum", "retained_mass_sum")}
        found[share] += (sums,)
    for plain, shadowed in zip(found[0.0], found[1.0], strict=True):
        torch.testing.assert_close(shadowed, plain, rtol=0, atol=0)
    assert len(passes) == 2
    shadow = info["shadow"]
    assert (shadow["steps"], shadow["rows"]) == (1, rows - 1)  # the exact row is not compared
    served = logits.log_softmax(-1)
    expected = (full.exp() * (full - served)).sum(-1)
    assert expected[0] < 1e-6 < expected[1:].sum()
    assert shadow["kl_sum"] == pytest.approx(float(expected[1:].sum()), rel=1e-4)
    agrees = (full.argmax(-1) == served.argmax(-1))[1:]
    assert shadow["agreements"] == int(agrees.sum())


def test_a_cap_that_cuts_nothing_has_a_kl_of_0_beside_one_that_does(model_of: Any) -> None:
    """Two steps are in flight at once: neither takes the other's caps or comparison."""
    model = model_of(budget=5, floor=0, shadow_share=1.0)
    requests = requests_of(3)  # which use less than E - 1 experts
    launched = [model.launch(requests)]
    for budget in (E - 1, 5, "full"):
        model.builder.apply(Settings(budget=budget, floor=0, shadow_share=1.0))
        launched.append(model.launch(requests))
        model.finish(launched[-2])
    model.finish(launched[-1])
    cut, uncut, again, full = (each[1].lynx_flight.step.shadow for each in launched)
    assert uncut.kl == [0.0] * 3
    assert all(uncut.agrees)
    assert cut.mean_kl > 1e-3
    assert cut == again
    assert full is None  # nothing to compare at full quality
    assert server_info(model.builder)["shadow"]["steps"] == 3


def test_the_steps_that_are_compared(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(budget=5, floor=0, shadow_share=0.5)
    for mode in (ForwardMode.EXTEND, *[ForwardMode.DECODE] * 10):
        model.finish(model.launch(requests_of(8), mode))
    assert server_info(model.builder)["shadow"]["steps"] == 5
    model.finish(model.launch(requests_of(8, lynx="exact")))
    assert model.runtime._sampler.count == 10
    monkeypatch.setattr("lynx_sglang.gpu.shadow.MAX_COMPARED_ROWS", 4)
    model.builder.apply(Settings(budget=5, floor=0, shadow_share=1.0))
    before = server_info(model.builder)["shadow"]["rows"]
    model.finish(model.launch([*requests_of(1, lynx="exact"), *requests_of(7)]))
    assert server_info(model.builder)["shadow"]["rows"] - before == 4


def test_streams_wait_for_a_full_pass_that_is_no_part_of_a_steps_cost(model_of: Any) -> None:
    model, slept_s = model_of(budget=5, floor=0, shadow_share=1.0), 0.05
    run_once, buffer = model.run_once, model.runtime.buffer

    def slow_when_full(batch: Any) -> Any:
        if int(buffer.caps[0]) == E:
            time.sleep(slept_s)
        return run_once(batch)

    model.run_once = slow_when_full
    launched = model.launch(requests_of(8))
    model.finish(launched)
    assert launched[1].lynx_flight.step.shadow_ms >= 1e3 * slept_s
    seen: list[Any] = []
    controller = model.runtime.control.controller
    step = controller.step
    controller.step = lambda observation: seen.append(observation) or step(observation)
    model.finish(model.launch(requests_of(8)))
    assert seen[0].itl_ms - seen[0].step_ms >= 1e3 * slept_s


def on_a_cpu(model: Model, rows: int, classes: torch.Tensor, budget: int) -> list[torch.Tensor]:
    """Ids of each layer as the CPU path selects them."""
    rng = torch.Generator().manual_seed(rows)
    found = []
    for gate in model.gates:
        scores = (torch.randn(rows, H, generator=rng) @ gate.T).softmax(-1)
        weights, ids = scores.topk(K)
        one, cap = (torch.tensor(value, dtype=torch.int32) for value in (1, budget))
        found.append(select(scores, ids.int(), weights, classes, budget=cap, floor=one).topk_ids)
    return found


@pytest.mark.usefixtures("mixing")
@pytest.mark.parametrize("graphs", [[], PREFILL_GRAPHS], ids=["eager", "graph"])
def test_decode_rows_of_mixed_steps_are_selected_as_on_a_cpu(
    graphs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(Settings(budget=5), monkeypatch, prefill_graphs=graphs)
    model.num_plain = 0
    requests = [*requests_of(6), *requests_of(1, lynx="exact")]
    launched = model.launch(requests, ForwardMode.MIXED, prompt=2)
    model.finish(launched)
    size = next(iter(graphs), 9)
    classes = torch.full((size,), RowClass.PAD, dtype=torch.uint8)
    classes[:9] = RowClass.FLEXIBLE
    classes[[0, 1, 8]] = RowClass.EXACT
    own, expected = own_routing(model, size, 9), on_a_cpu(model, size, classes, 5)
    for got, asked, mine in zip(model.routed, expected, own, strict=True):
        assert torch.equal(got.sort().values, asked.sort().values)
        assert torch.equal(got[[0, 1, 8]].sort().values, mine[[0, 1, 8]].int().sort().values)
        assert (got[9:] == -1).all()
    assert model.num_plain == LAYERS
    step = launched[1].lynx_flight.step
    assert list(step.num_active.values()) == [
        ids[ids >= 0].unique().numel() for ids in model.routed
    ]
    assert [account_of(one).decode_tokens for one in requests] == [1] * 7
    assert account_of(requests[-1]).degraded_tokens == 0
    assert sum(account_of(one).degraded_tokens for one in requests) > 0
    assert step.batch.phase is Phase.MIXED


@pytest.mark.usefixtures("mixing")
def test_prefill_comes_out_of_graphs_that_select_as_it_went_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model(Settings(budget=5), monkeypatch, prefill_graphs=PREFILL_GRAPHS)
    model.finish(model.launch(requests_of(7), ForwardMode.MIXED, prompt=3))
    model.finish(model.launch(requests_of(11), ForwardMode.EXTEND))
    for ids, own in zip(model.routed, own_routing(model, 16, 16), strict=True):
        assert torch.equal(ids.sort().values, own.int().sort().values)  # padding as SGLang has it
    model.finish(model.launch(requests_of(7)))  # the cap is back, and so is padding
    for ids in model.routed:
        assert ids[:7].unique().numel() <= 7
        assert (ids[7:] == -1).all()
    assert server_info(model.builder)["decode_steps"] == 2


@pytest.mark.usefixtures("mixing")
def test_chunks_beyond_what_lynx_selects_in_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UnsupportedError, match=r"steps of up to 69632 rows are not served: .*65536"
    ):
        Model(Settings(), monkeypatch, prefill_graphs=[65536])


def test_a_runner_that_routes_inside_its_kernel_is_refused() -> None:
    topk = sglang_topk.TopK(K, layer_id=3)
    with pytest.raises(UnsupportedError, match=r"layer 3: the runner triton_kernel routes inside"):
        expert_hooks.bind_backend(
            sglang_topk.TopK.bind_runner_backend, topk, MoeRunnerBackend.TRITON_KERNELS
        )
