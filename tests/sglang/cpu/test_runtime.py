"""The two loops in one process: real selection and control, a stand-in for the scheduler."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_parallel
from transformers import PretrainedConfig

from lynx_controller.fleet.replica import Replica
from lynx_sglang.cli import describe, main
from lynx_sglang.cpu.runtime import CpuBuilder, CpuRuntime, count_active
from lynx_sglang.errors import LynxError, SettingError, UnsupportedError
from lynx_sglang.integration import model_runner, state
from lynx_sglang.integration.scheduler import run_batch
from lynx_sglang.loop.layers import MoeLayers
from lynx_sglang.loop.step import pad_to, size_class_of
from lynx_sglang.loop.tier import account_of
from lynx_sglang.settings import Settings

LAYERS, EXPERTS, TOP_K = 3, 32, 4
SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    with get_parallel().override(tp_rank=0, tp_size=1, moe_ep_size=1, dp_rank=None):
        yield


def request(rid: str, **params: Any) -> SimpleNamespace:
    return SimpleNamespace(rid=rid, sampling_params=SimpleNamespace(custom_params=params or None))


class Scheduler:
    """Runs batches through a runtime: a pass routes every row in every layer."""

    def __init__(self, settings: Settings) -> None:
        self.builder = CpuBuilder(settings)
        for layer in range(LAYERS):
            self.builder.add_layer(
                SimpleNamespace(
                    layer_id=layer, num_experts=EXPERTS, num_fused_shared_experts=0, top_k=TOP_K
                )
            )
        self.forward_ct = 0
        self.waiting_queue: list[Any] = []
        self.model_config = SimpleNamespace(
            hf_config=PretrainedConfig(), linear_attn_registry_result=None
        )
        self.metrics_reporter = SimpleNamespace(enable_metrics=False)
        self.chunked_prefill_size, self.prefill_decode_interval = 512, 0
        self.prefill_decode_interval_min_bs = self._prefill_decode_interval_remaining = 0
        self.page_size, self.truncation_align_size, self.chunked_req = 1, None, None
        self.passes = 0
        self.routed: list[tuple[torch.Tensor, torch.Tensor]] = []  # ids in, ids out

    @property
    def runtime(self) -> CpuRuntime:
        return self.builder.start()

    def run(self, requests: list[Any], mode: ForwardMode = ForwardMode.DECODE) -> None:
        batch = SimpleNamespace(
            forward_mode=mode,
            reqs=requests,
            seq_lens=torch.ones(len(requests)),
            seq_lens_cpu=torch.ones(len(requests)),
            prefix_lens=[0] * len(requests),
            extend_lens=[100] * len(requests),
            launch_ts=time.monotonic(),
            after_idle_gap=False,
        )
        run_batch(self.builder)(self.forward, self, batch)

    def forward(self, _scheduler: Any, batch: Any) -> Any:
        self.forward_ct += 1
        return model_runner.forward(self.builder)(self.model, batch)

    def model(self, batch: Any) -> Any:
        """One pass; a row's logits are the weights of the experts that it got."""
        self.passes += 1
        self.routed.clear()
        generator = torch.Generator().manual_seed(self.forward_ct)
        logits = torch.zeros(len(batch.reqs), EXPERTS)
        for layer in range(LAYERS):
            scores = torch.rand(len(batch.reqs), EXPERTS, generator=generator).softmax(-1)
            weights, ids = scores.topk(TOP_K)
            out = self.runtime.select(layer, ids, weights, lambda s=scores: s, None)
            self.routed.append((ids, ids if out is None else out[0]))
            logits.scatter_add_(1, *((ids, weights) if out is None else (out[0].long(), out[1])))
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=50 * logits))


def test_a_fixed_budget_holds_from_the_first_decode_step() -> None:
    scheduler = Scheduler(Settings(budget=8))
    requests = [request(str(i)) for i in range(12)]
    scheduler.run(requests)
    for _, ids in scheduler.routed:
        assert count_active(ids, EXPERTS) <= 12  # the floors: each row's own top expert
    assert scheduler.runtime.telemetry.decode_steps == 1
    reports = [account_of(one) for one in requests]
    assert all(account.decode_tokens == 1 for account in reports)
    assert any(account.degraded_tokens for account in reports)


def test_a_calibrated_server_keeps_the_experts_that_weigh(
    calibrated: Callable[[list[list[float]]], Path],
) -> None:
    odd = {}
    for file in (None, str(calibrated([[0.01, 1.0] * (EXPERTS // 2)] * LAYERS))):
        scheduler = Scheduler(Settings(budget=12, floor=0, calibration=file))
        scheduler.run([request(str(i)) for i in range(12)])
        kept = torch.cat([ids.unique() for _, ids in scheduler.routed])
        odd[file is not None] = float((kept % 2).float().mean())
    assert odd[False] < 0.7 < 0.8 < odd[True]


def test_a_calibration_of_other_sizes_never_starts(
    calibrated: Callable[[list[list[float]]], Path],
) -> None:
    file = str(calibrated([[1.0] * 8] * LAYERS))
    with pytest.raises(SettingError, match=f"expected {LAYERS} layers of {EXPERTS} experts"):
        Scheduler(Settings(calibration=file)).builder.start()


def test_without_an_slo_nothing_is_cut() -> None:
    scheduler = Scheduler(Settings())
    for _ in range(5):
        scheduler.run([request(str(i)) for i in range(12)])
        assert all(given is out for given, out in scheduler.routed)
    info = state.server_info(scheduler.builder)
    assert info["decisions"] == {"full": 5}
    assert info["retained_mass_sum"] == 5.0
    assert info["active_experts_sum"] > 5 * TOP_K


def test_an_impossible_slo_goes_to_the_floor_and_says_so() -> None:
    scheduler = Scheduler(Settings(slo_itl_ms=0.001, min_retained_mass=0.6))
    for _ in range(60):
        scheduler.run([request(str(i)) for i in range(12)])
    decision = scheduler.runtime.decision
    assert decision is not None
    assert decision.saturated
    assert decision.demand == 1.0
    assert decision.share < 0.6 or decision.share == 1.0  # where no cut would buy time


def test_who_waits_for_a_place_buys_faster_steps() -> None:
    scheduler = Scheduler(Settings(slo_ttft_ms=1000.0, min_retained_mass=0.6))
    for _ in range(30):
        scheduler.run([request(str(i)) for i in range(12)])
    stats = SimpleNamespace(wait_queue_entry_time=time.perf_counter() - 5.0)
    scheduler.waiting_queue = [SimpleNamespace(time_stats=stats)]
    scheduler.run([request(str(i)) for i in range(12)])
    info = state.server_info(scheduler.builder)
    assert info["decisions"]["full"] >= 29
    assert info["controller"]["ttft_ms"] == 1000.0
    assert info["controller"]["queue_ms"] >= 5000.0
    assert info["decision"]["reason"] in ("queue", "saturated")
    assert "SLO TTFT 1000 ms" in describe(info)
    assert "requests wait 5.0 s for a place" in describe(info)


def test_exact_requests_and_prefill_come_out_as_they_went_in() -> None:
    scheduler = Scheduler(Settings(budget=4))
    requests = [request("exact", lynx="exact"), *(request(str(i)) for i in range(11))]
    scheduler.run(requests)
    for given, out in scheduler.routed:
        assert torch.equal(given[0], out[0])
    assert account_of(requests[0]).degraded_tokens == 0
    scheduler.run(requests, ForwardMode.EXTEND)
    assert all(given is out for given, out in scheduler.routed)


def test_a_shadow_pass_measures_the_cut_and_changes_nothing_else() -> None:
    schedulers = [Scheduler(Settings(budget=8, shadow_share=share)) for share in (0.0, 1.0)]
    requests = [request("exact", lynx="exact"), *(request(str(i)) for i in range(11))]
    for scheduler in schedulers:
        for _ in range(3):
            scheduler.run(requests)
        scheduler.run(requests, ForwardMode.EXTEND)
    plain, shadowed = schedulers
    assert (plain.passes, shadowed.passes) == (4, 7)  # prefill is not cut: no shadow
    for (_, expected), (_, got) in zip(plain.routed, shadowed.routed, strict=True):
        assert torch.equal(expected, got)
    for name in ("active_experts_sum", "retained_mass_sum", "decode_steps", "floor_hits"):
        assert getattr(plain.runtime.telemetry, name) == getattr(shadowed.runtime.telemetry, name)
    nothing = state.server_info(plain.builder)["shadow"]
    assert (nothing["steps"], nothing["rows"], nothing["kl_mean"]) == (0, 0, None)
    found = state.server_info(shadowed.builder)["shadow"]
    assert (found["steps"], found["rows"]) == (3, 33)  # the exact row is not compared
    assert found["kl_sum"] > 0.0
    assert sum(found["kl_histogram"]) == 33


def test_a_step_that_nothing_cuts_has_no_shadow() -> None:
    scheduler = Scheduler(Settings(shadow_share=1.0))
    scheduler.run([request(str(i)) for i in range(12)])
    assert scheduler.passes == 1


def test_the_time_of_a_shadow_is_in_the_gap_and_not_in_the_step() -> None:
    """The full pass sleeps: streams wait for it, the cost model must not learn it."""
    scheduler = Scheduler(Settings(budget=8, shadow_share=1.0))
    model, slept_s = scheduler.model, 0.02

    def slow_when_full(batch: Any) -> Any:
        if scheduler.runtime.step is None:
            time.sleep(slept_s)
        return model(batch)

    scheduler.model = slow_when_full  # type: ignore[method-assign]
    requests = [request(str(i)) for i in range(12)]
    scheduler.run(requests)
    assert scheduler.runtime.control is not None
    controller = scheduler.runtime.control.controller
    seen: list[Any] = []
    step = controller.step
    controller.step = lambda observation: seen.append(observation) or step(observation)  # type: ignore[method-assign, func-returns-value]
    scheduler.run(requests)
    (observation,) = seen
    assert observation.itl_ms >= 1e3 * slept_s
    assert observation.itl_ms - observation.step_ms >= 1e3 * slept_s


def test_settings_change_at_run_time() -> None:
    scheduler = Scheduler(Settings())
    requests = [request(str(i)) for i in range(12)]
    scheduler.run(requests)
    scheduler.builder.apply(Settings(budget=6))
    scheduler.run(requests)
    assert any(given is not out for given, out in scheduler.routed)
    scheduler.builder.apply(Settings(budget="full"))
    scheduler.run(requests)
    assert all(given is out for given, out in scheduler.routed)


def test_the_controller_gets_the_quality_limit_and_what_shadows_find() -> None:
    scheduler = Scheduler(Settings(demand=0.4, max_quality_loss=0.01, shadow_share=1.0))
    requests = [request(str(i)) for i in range(12)]
    for _ in range(3):
        scheduler.run(requests)
    info = state.server_info(scheduler.builder)
    assert info["controller"]["max_quality_loss"] == 0.01
    assert info["controller"]["shadow_rows"] == info["shadow"]["rows"] == 36
    scheduler.builder.apply(Settings(budget=8))
    assert state.server_info(scheduler.builder)["controller"]["max_quality_loss"] is None


def test_a_model_without_our_layers_is_an_error() -> None:
    with pytest.raises(LynxError, match="no MoE layer"):
        CpuBuilder(Settings()).start()


def layer(layer_id: int, **changes: Any) -> SimpleNamespace:
    sizes = {"num_experts": EXPERTS, "top_k": TOP_K, "num_fused_shared_experts": 0}
    return SimpleNamespace(layer_id=layer_id, **{**sizes, **changes})


def test_a_layer_that_does_not_select_stops_the_server() -> None:
    scheduler = Scheduler(Settings())
    scheduler.builder.add_layer(layer(99))  # which the model runs without SGLang's top-k
    with pytest.raises(LynxError, match="MoE layers 99 do not select"):
        scheduler.run([request("0")])


@pytest.mark.parametrize("other", [layer(1, num_experts=8), layer(1, top_k=2), layer(0)])
def test_layers_of_several_sizes_are_refused(other: Any) -> None:
    with pytest.raises(UnsupportedError, match="differ in experts or top-k"):
        MoeLayers.of([layer(0), other], {})


def test_top_k_that_a_layer_lacks_is_its_routers() -> None:
    layers = [
        layer(3, top_k=None, num_fused_shared_experts=None),
        layer(1, top_k=None, num_fused_shared_experts=None),
    ]
    assert MoeLayers.of(layers, {1: TOP_K, 3: TOP_K}) == MoeLayers([1, 3], EXPERTS, TOP_K)
    with pytest.raises(UnsupportedError, match="differ in experts or top-k"):
        MoeLayers.of(layers, {1: TOP_K, 3: 1})
    with pytest.raises(UnsupportedError, match="no SGLang router"):
        MoeLayers.of(layers, {})


@pytest.mark.parametrize(
    ("function", "argument", "result"),
    [
        (size_class_of, 1, 1),
        (size_class_of, 5, 6),
        (size_class_of, 16, 16),
        (size_class_of, 17, 24),
        (size_class_of, 257, 512),
    ],
)
def test_size_classes(function: Callable[[int], int], argument: int, result: int) -> None:
    assert function(argument) == result


def test_rows_that_sglang_adds_are_pads() -> None:
    assert pad_to(torch.tensor([2, 1], dtype=torch.uint8), 4).tolist() == [2, 1, 0, 0]


def replica_of(scheduler: Scheduler) -> Replica:
    assert scheduler.runtime.control is not None
    assert scheduler.runtime.control.replica is not None
    return scheduler.runtime.control.replica


def test_a_replica_ships_and_the_next_one_starts_from_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    for _ in range(2):
        old = Scheduler(Settings(store=url))
        for step in range(30):
            old.run([request(str(i)) for i in range(2 + step % 3)])
        replica_of(old).close()
    assert main(["fleet-refit", url]) == 0
    new = Scheduler(Settings(store=url))
    deadline = time.monotonic() + 5.0
    new.run([request("a")])
    while not replica_of(new).has_inherited:
        assert time.monotonic() < deadline
        new.run([request("a")])
    replica_of(new).close()


def test_a_lost_store_is_no_step_paths_concern() -> None:
    scheduler = Scheduler(Settings(store="sqlite:////nowhere/at/all.db"))
    for _ in range(200):
        scheduler.run([request("a")])
    replica_of(scheduler).close()
    info = state.server_info(scheduler.builder)
    assert info["fleet"]["failures"] > 0
    assert info["settings"]["store"] == "set"
    assert scheduler.runtime.telemetry.decode_steps == 200


def paced(mode: str) -> Scheduler:
    """After prefills that no SLO of a microsecond has room for."""
    scheduler = Scheduler(Settings(slo_itl_ms=0.001, prefill_pacing=mode))
    requests = [request(str(i)) for i in range(4)]
    for _ in range(5):
        scheduler.run(requests, ForwardMode.EXTEND)
        scheduler.run(requests)
    return scheduler


def test_prefill_that_spent_the_late_gaps_waits_by_the_schedulers_own_rule() -> None:
    scheduler = paced("on")
    pacing = state.server_info(scheduler.builder)["pacing"]
    assert (pacing["rule"], pacing["is_on"], pacing["failures"]) == ("wait", True, 0)
    assert pacing["prefills"] >= 4  # a prefill that the machine held up is no sample
    assert pacing["late_gaps"] >= 4
    deferred = scheduler._prefill_decode_interval_remaining
    assert deferred == scheduler.prefill_decode_interval == pacing["interval"] > 1
    sglang = pkgutil.resolve_name(SCHEDULER)
    batch = SimpleNamespace(batch_size=lambda: 4)
    waits = [sglang._should_defer_prefill(scheduler, batch) for _ in range(deferred + 1)]
    assert waits == [True] * deferred + [False]
    scheduler._prefill_decode_interval_remaining = deferred
    empty = SimpleNamespace(batch_size=lambda: 0)
    assert not sglang._should_defer_prefill(scheduler, empty)


@pytest.mark.parametrize("mode", ["off", "advise"])
def test_without_on_the_scheduler_is_untouched(mode: str) -> None:
    scheduler, new = paced(mode), Scheduler(Settings())
    for name in vars(new):
        if "prefill" in name:
            assert getattr(scheduler, name) == getattr(new, name)
    pacing = state.server_info(scheduler.builder)["pacing"]
    assert (pacing is None) == (mode == "off")
    assert pacing is None or pacing["rule"] == "wait"
