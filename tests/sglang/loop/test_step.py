"""From the scheduler's batch to selection: phases, row classes, tiers and accounts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from lynx_controller import Phase
from lynx_kernels import RowClass
from lynx_sglang.integration.streamer import reporting_streamer
from lynx_sglang.loop.step import phase_of, size_class_of, step_of
from lynx_sglang.loop.tier import Account, Tier, account_of, asked_tier, tier_of


def request(rid: str = "a", **params: Any) -> SimpleNamespace:
    return SimpleNamespace(
        rid=rid,
        sampling_params=SimpleNamespace(custom_params=params or None),
        finished=lambda: True,
    )


def batch(
    mode: ForwardMode, requests: list[Any], beam_rows: int = 0, **more: Any
) -> SimpleNamespace:
    lengths = torch.tensor([5] * (len(requests) + beam_rows))
    return SimpleNamespace(
        forward_mode=mode, reqs=requests, seq_lens=lengths, seq_lens_cpu=lengths, **more
    )


@pytest.mark.parametrize(
    ("mode", "phase"),
    [
        (ForwardMode.EXTEND, Phase.PREFILL),
        (ForwardMode.DECODE, Phase.DECODE),
        (ForwardMode.MIXED, Phase.MIXED),
        (ForwardMode.IDLE, Phase.IDLE),
        (ForwardMode.TARGET_VERIFY, Phase.VERIFY),
        (ForwardMode.PREBUILT, Phase.IDLE),
        (ForwardMode.SPLIT_PREFILL, Phase.PREFILL),
    ],
)
def test_phases(mode: ForwardMode, phase: Phase) -> None:
    assert phase_of(SimpleNamespace(forward_mode=mode)) is phase


def test_decode_rows_follow_the_requests_tier() -> None:
    requests = [request(), request(lynx="exact"), request("HEALTH_CHECK_1"), request(lynx="gold")]
    step = step_of(batch(ForwardMode.DECODE, requests), 7, Tier.FLEXIBLE, size_class_of)
    flexible, exact = RowClass.FLEXIBLE, RowClass.EXACT
    assert step.row_class.tolist() == [flexible, exact, exact, exact]
    assert (step.number, step.batch.rows, step.batch.flexible_rows, step.kv_tokens) == (7, 4, 1, 20)


def test_mixed_batches_keep_prefill_rows_exact() -> None:
    decoding = [request("d1"), request("d2")]
    mixed = batch(
        ForwardMode.MIXED, [request("p"), *decoding], decoding_reqs=decoding, extend_lens=[3, 1, 1]
    )
    step = step_of(mixed, 1, Tier.FLEXIBLE, size_class_of)
    assert step.row_class.tolist() == [RowClass.EXACT] * 3 + [RowClass.FLEXIBLE] * 2
    assert (step.first_decode_row, step.batch.rows) == (3, 2)


def test_prefill_selects_nothing() -> None:
    step = step_of(batch(ForwardMode.EXTEND, [request()]), 1, Tier.FLEXIBLE, size_class_of)
    assert (step.batch.rows, step.batch.flexible_rows) == (0, 0)


def test_the_default_tier_is_for_requests_that_name_none() -> None:
    assert tier_of(request(), Tier.EXACT) is Tier.EXACT
    assert tier_of(request(lynx="flexible"), Tier.EXACT) is Tier.FLEXIBLE
    assert tier_of(request(other=1), Tier.FLEXIBLE) is Tier.FLEXIBLE


def test_beams_behind_the_requests_are_exact() -> None:
    searching = request("b", lynx="flexible")
    searching.beam_group = object()
    decode = batch(ForwardMode.DECODE, [request("a"), searching], 3)
    step = step_of(decode, 1, Tier.FLEXIBLE, size_class_of)
    flexible, exact = RowClass.FLEXIBLE, RowClass.EXACT
    assert step.row_class.tolist() == [flexible, exact, exact, exact, exact]
    assert (step.batch.rows, step.batch.flexible_rows, step.kv_tokens) == (5, 1, 25)
    step.note_layer(0, 9, torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0]).numpy())
    step.add_up_layers()
    assert step.row_retained_mass is not None
    assert step.row_retained_mass.tolist() == [0.5, 1.0]


UNREADABLE = [
    {"lynx": "turbo"},
    {"lynx": "EXACT"},
    {"lynx": " exact"},
    {"lynx": ""},
    {"lynx": 5},
    {"lynx": True},
    {"lynx": ["exact"]},
    {"lynx": {"tier": "exact"}},
    {"LYNX": "exact"},
    {" lynx": "exact"},
    {"lynx_tier": "exact"},
    [1],
    "exact",
    7,
    False,
]


@pytest.mark.parametrize("sent", UNREADABLE, ids=repr)
def test_a_tier_that_cannot_be_read_names_both(sent: Any) -> None:
    with pytest.raises(ValueError, match=r'^custom_params: .*"exact".*"flexible".* got '):
        asked_tier(sent)


@pytest.mark.parametrize("sent", UNREADABLE, ids=repr)
def test_what_comes_through_is_served_exact(sent: Any) -> None:
    one = request()
    one.sampling_params.custom_params = sent
    assert tier_of(one, Tier.FLEXIBLE) is Tier.EXACT


def test_the_message_stays_short() -> None:
    deep: Any = "x" * 10_000
    for _ in range(5_000):
        deep = [deep]
    for sent in (deep, {"lynx": deep}, {"lynx" * 10_000: 1}, "x" * 10**6):
        with pytest.raises(ValueError, match="custom_params") as caught:
            asked_tier(sent)
        assert len(str(caught.value)) < 300


def test_layers_add_up_to_a_rows_retained_mass() -> None:
    requests = [request("a"), request("b", lynx="exact")]
    step = step_of(batch(ForwardMode.DECODE, requests), 1, Tier.FLEXIBLE, size_class_of)
    step.note_layer(0, 9, torch.tensor([0.5, 1.0]).numpy())
    step.note_layer(1, 7, torch.tensor([0.7, 1.0]).numpy(), torch.tensor([0.9, 1.0]).numpy())
    step.add_up_layers()
    assert step.num_active == {0: 9, 1: 7}
    assert step.retained_mass == pytest.approx({0: 0.5, 1: 0.7})
    assert step.row_retained_mass is not None
    assert step.row_retained_mass.tolist() == pytest.approx([1.2, 2.0])
    assert step.covered_mass == pytest.approx({0: 0.5, 1: 0.9})
    assert step.row_covered_mass is not None
    assert step.row_covered_mass.tolist() == pytest.approx([1.4, 2.0])


def test_an_account_reports_its_requests_loss() -> None:
    one = request()
    account = account_of(one)
    account.add(1.0, 1.0)
    account.add(0.5, 0.8)
    assert account_of(one) is account
    assert account.report(Tier.FLEXIBLE) == {
        "tier": "flexible",
        "degraded": True,
        "degraded_tokens": 1,
        "decode_tokens": 2,
        "retained_mass": 0.75,
        "covered_mass": 0.9,
    }
    assert Account().report(Tier.EXACT)["retained_mass"] == 1.0


def test_only_finished_requests_report() -> None:
    class Base:
        __slots__ = ()

        def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
            return {}

    ended: list[Tier] = []
    streamer = reporting_streamer(Base, Tier.FLEXIBLE, ended.append)()
    done, running = request("a"), request("b")
    running.finished = lambda: False
    info = streamer.build_additional_customized_info([running, done])
    assert info["lynx"][0] == []
    assert info["lynx"][1][0]["tier"] == "flexible"
    assert streamer.build_additional_customized_info([running]) == {}
    assert ended == [Tier.FLEXIBLE]
