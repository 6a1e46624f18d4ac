"""The findings of a shadow pass, and its frequency."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.configs import Qwen3NextConfig
from transformers import PretrainedConfig

from lynx_kernels import RowClass
from lynx_sglang.loop.shadow import (
    KL_BUCKETS,
    Comparison,
    ShadowTotals,
    compare,
    flexible_rows,
    is_sampled,
    log_probabilities,
    quantile,
    refusal,
)

PAD, EXACT, FLEXIBLE = RowClass.PAD, RowClass.EXACT, RowClass.FLEXIBLE


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_kl_is_of_the_served_row_from_the_full_one_in_nats() -> None:
    seen = compare(logs([0.5, 0.5], [0.9, 0.1]), logs([0.25, 0.75], [0.6, 0.4]))
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    assert seen.kl == pytest.approx([first, second], rel=1e-5)
    assert seen.mean_kl == pytest.approx((first + second) / 2, rel=1e-5)


def test_agreement_is_of_the_most_probable_token() -> None:
    seen = compare(logs([0.6, 0.4], [0.6, 0.4]), logs([0.4, 0.6], [0.51, 0.49]))
    assert seen.agrees == [False, True]
    assert seen.agreement == 0.5


def test_equal_rows_lose_nothing_and_impossible_tokens_count_nothing() -> None:
    row = torch.tensor([[2.0, -torch.inf, 0.3]]).log_softmax(-1)
    assert compare(row, row) == Comparison([0.0], [True])


def test_log_probabilities_are_of_the_chosen_rows_and_a_copy() -> None:
    logits = torch.randn(6, 5)  # the last row is padding
    output = SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits))
    classes = torch.tensor([FLEXIBLE, EXACT, PAD, FLEXIBLE, FLEXIBLE], dtype=torch.uint8)
    rows = flexible_rows(classes)
    expected = logits[[0, 3, 4]].log_softmax(-1)
    got = log_probabilities(output, rows)
    logits.zero_()  # as the next replay of a graph would
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_every_stretch_of_steps_has_its_share_of_shadows(share: float) -> None:
    for start in (0, 12_345):
        sampled = sum(is_sampled(count, share) for count in range(start, start + 1000))
        assert sampled == pytest.approx(1000 * share, abs=4)


def test_no_period_hides_from_the_sample() -> None:
    """Of steps that recur every 50, as many are sampled as of all."""
    sampled = sum(is_sampled(count, 0.02) for count in range(7, 50_000, 50))
    assert sampled == pytest.approx(20, abs=4)


@pytest.mark.parametrize(
    ("config", "is_refused"), [(PretrainedConfig(), False), (Qwen3NextConfig(), True)]
)
def test_a_recurrent_model_is_not_run_twice(config: PretrainedConfig, is_refused: bool) -> None:
    model = SimpleNamespace(hf_config=config, linear_attn_registry_result=None)
    assert (refusal(model) is not None) is is_refused


def test_totals_add_up() -> None:
    totals = ShadowTotals()
    assert totals.report()["kl_p99"] is None
    totals.add(Comparison([0.001, 0.003], [True, False]))
    totals.add(Comparison([20.0], [True]))
    report = totals.report()
    assert (report["steps"], report["rows"], report["agreements"]) == (2, 3, 2)
    assert report["kl_sum"] == pytest.approx(20.004)
    assert report["kl_mean"] == pytest.approx(20.004 / 3)
    assert report["agreement"] == pytest.approx(2 / 3)
    by_bound = dict(zip(report["kl_buckets"], report["kl_histogram"], strict=False))
    assert (by_bound[0.001], by_bound[0.005], report["kl_histogram"][-1]) == (1, 1, 1)


def test_a_quantile_is_within_its_bucket() -> None:
    values = torch.rand(2000, generator=torch.Generator().manual_seed(0)) ** 4
    totals = ShadowTotals()
    totals.add(Comparison(values.tolist(), [True] * 2000))
    for share in (0.5, 0.9, 0.99):
        exact = float(values.quantile(share))
        got = quantile(totals.histogram, share)
        bounds = [0.0, *KL_BUCKETS]
        low, high = next(pair for pair in itertools.pairwise(bounds) if exact <= pair[1])
        assert low <= got <= high
