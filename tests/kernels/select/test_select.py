"""`select` by hand: small batches whose answer is arithmetic, odd shapes, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lynx_kernels import POLICIES, RowClass, Selection, select

every_policy = pytest.mark.parametrize("policy", POLICIES)


def scalar(value: float, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def batch(scores: list[list[float]], top_k: int, *, device: str = "cpu") -> dict[str, Tensor]:
    table = torch.tensor(scores, dtype=torch.float32)
    weights, ids = table.topk(top_k, dim=1)
    return {
        "scores": table.to(device),
        "topk_ids": ids.int().to(device),
        "topk_weights": weights.to(device),
        "row_class": torch.full((len(scores),), RowClass.FLEXIBLE, dtype=torch.uint8).to(device),
        "budget": scalar(table.shape[1]).to(device),
        "floor": scalar(1).to(device),
        "similarity": torch.eye(table.shape[1], device=device),
    }


def run(given: dict[str, Tensor], **changes: Tensor | str | None) -> Selection:
    return select(**{**given, **changes})  # type: ignore[arg-type]


# Two rows that share expert 0; the second also wants 2 a little.
SHARED = [[0.5, 0.3, 0.1, 0.1], [0.6, 0.05, 0.25, 0.1]]


def test_lynx_keeps_exact_survivors_and_discounts_refills() -> None:
    got = run(batch(SHARED, 2), budget=scalar(2))
    # Expert 0 is both rows' floor; (0.3 / 0.8)^6 beats (0.25 / 0.85)^6, so 1 stays and 2 goes.
    assert got.topk_ids.tolist() == [[0, 1], [0, 1]]
    expected = torch.tensor([[0.5, 0.3], [0.6, 0.3 * 0.25]])
    torch.testing.assert_close(got.topk_weights, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(got.retained_mass, torch.tensor([1, 0.6 / 0.85]), rtol=1e-6, atol=0)
    assert got.active.tolist() == [True, True, False, False]
    assert got.num_active.item() == 2


def test_lynx_demand_lets_the_active_set_emerge() -> None:
    # Shares of the top-2 mass: 0.625 and 0.71, so a demand of 0.6 is met by expert 0 alone.
    got = run(batch(SHARED, 2), demand=scalar(0.6, torch.float32))
    assert got.topk_ids.tolist() == [[0, -1], [0, -1]]
    assert got.topk_weights[:, 1].tolist() == [0, 0]
    assert run(batch(SHARED, 2), demand=scalar(0.7, torch.float32)).num_active.item() == 2


def test_lynx_weighs_shares_by_what_experts_contribute() -> None:
    # Expert 2's share is the smaller one, but the other expert's output hardly counts.
    weights = torch.tensor([1.0, 0.2, 1.0, 1.0])
    got = run(batch(SHARED, 2), budget=scalar(2), contribution=weights)
    assert got.topk_ids.tolist() == [[0, 2], [0, 2]]
    # (0.3 / 0.8)^6 * 0.24 beats (0.25 / 0.85)^6 * 1 by a hair: 0.00067 to 0.00065.
    weights[1] = 0.24
    kept = run(batch(SHARED, 2), budget=scalar(2), contribution=weights)
    assert kept.topk_ids.tolist() == [[0, 1], [0, 1]]


def test_only_lynx_takes_contributions() -> None:
    with pytest.raises(ValueError, match="contribution: expected None for policy oea, got a ten"):
        run(batch(SHARED, 2), policy="oea", contribution=torch.ones(4))


def test_topk_drops_and_renormalises() -> None:
    got = run(batch(SHARED, 2), policy="topk", demand=scalar(0.5, torch.float32))
    assert got.topk_ids.tolist() == [[0, -1], [0, -1]]
    expected = torch.tensor([[0.8, 0], [0.85, 0]])
    torch.testing.assert_close(got.topk_weights, expected, rtol=1e-6, atol=0)


def test_oea_refills_by_score_and_keeps_the_row_total() -> None:
    got = run(batch(SHARED, 2), policy="oea", budget=scalar(2))
    assert got.topk_ids.tolist() == [[0, 1], [0, 1]]  # one vote each, 1 has the larger share
    expected = torch.tensor([0.6, 0.05]) * (0.85 / 0.65)
    torch.testing.assert_close(got.topk_weights[1], expected, rtol=1e-6, atol=0)


def test_xshare_follows_the_scores_of_the_whole_batch() -> None:
    scores = [[0.5, 0.26, 0.24], [0.6, 0.14, 0.26]]
    got = run(batch(scores, 2), policy="xshare", budget=scalar(2))
    assert got.topk_ids.tolist() == [[0, 2], [0, 2]]  # 0.24 + 0.26 beats 0.26 + 0.14
    expected = torch.tensor([0.5, 0.24]) * (0.76 / 0.74)
    torch.testing.assert_close(got.topk_weights[0], expected, rtol=1e-6, atol=0)


def test_lynx_v1_keeps_the_top_expert_of_confident_rows_only() -> None:
    scores = [[0.9, 0.1, 0.0], [0.0, 0.4, 0.6], [0.0, 0.55, 0.45]]
    given = batch(scores, 2)  # votes: 1 from row 0, 3 for expert 1, 2 for expert 2
    assert run(given, policy="lynx-v1", budget=scalar(1)).num_active.item() == 3  # the three tops
    sure = replace(POLICIES["lynx-v1"], confidence=0.8)
    got = run(given, policy=sure, budget=scalar(2))
    assert got.topk_ids.tolist() == [[0, 1], [-1, 1], [1, -1]]


def test_lynx_v3_lets_one_near_vote_outweigh_all_far_ones() -> None:
    # Expert 1 is far from the best in three rows, expert 2 is near in one.
    scores = [[0.8, 0.2, 0.0], [0.8, 0.2, 0.0], [0.8, 0.2, 0.0], [0.5, 0.05, 0.45]]
    policy = replace(POLICIES["lynx-v3"], bin_width=1.0, num_bins=3)
    got = run(batch(scores, 2), policy=policy, budget=scalar(2))
    assert got.active.tolist() == [True, False, True]


def test_des_vote_keeps_the_largest_sums_of_own_weights() -> None:
    scores = [[0.5, 0.4, 0.1], [0.45, 0.1, 0.45], [0.0, 0.45, 0.55]]
    got = run(batch(scores, 2), policy="des-vote", budget=scalar(2), floor=scalar(0))
    assert got.active.tolist() == [True, False, True]  # 1.06, 0.89, 1.05 of the top-2 mass


def test_sere_moves_weights_to_the_most_similar_primary_expert() -> None:
    given = batch([[0.5, 0.3, 0.2, 0.0], [0.0, 0.1, 0.2, 0.7]], 3)
    given["similarity"] = torch.tensor(
        [[1, 0, 0, 0.1], [0.6, 1, 0, 0.1], [0.1, 0, 1, 0.4], [0.1, 0.1, 0.1, 1]]
    )
    got = run(given, policy="sere", demand=scalar(0.0, torch.float32))  # primary: 0 and 3
    assert got.topk_ids.tolist() == [[0, -1, 3], [3, -1, 0]]  # 1 moves to 0, 2 to 3
    expected = torch.tensor([[0.8, 0, 0.2], [0.9, 0, 0.1]])
    torch.testing.assert_close(got.topk_weights, expected, rtol=1e-6, atol=0)
    alike = replace(POLICIES["sere"], min_similarity=0.5)
    got = run(given, policy=alike, demand=scalar(0.0, torch.float32))
    assert got.active.tolist() == [True, False, True, True]  # 2 is like none of them and stays


def test_sere_asks_for_its_similarity() -> None:
    given = batch(SHARED, 2)
    with pytest.raises(ValueError, match="similarity: expected a tensor for policy sere, got None"):
        run(given, policy="sere", similarity=None)
    with pytest.raises(ValueError, match=r"similarity: expected torch.float32 \(4, 4\)"):
        run(given, policy="sere", similarity=torch.eye(3))


def test_random_draws_anew_from_each_step() -> None:
    drawn = set()
    for seed in range(20):
        rows = torch.rand(4, 16, generator=torch.Generator().manual_seed(seed)).softmax(1)
        got = run(batch(rows.tolist(), 4), policy="random", budget=scalar(4), floor=scalar(0))
        assert got.num_active.item() == 4
        drawn.update(got.active.nonzero().flatten().tolist())
    assert len(drawn) > 12


def test_full_ignores_budget_and_demand() -> None:
    got = run(batch(SHARED, 2), policy="full", budget=scalar(0), demand=scalar(0, torch.float32))
    assert got.topk_ids.tolist() == [[0, 1], [0, 2]]


def test_refills_are_ranked_by_biased_scores_and_weighed_by_scores() -> None:
    scores = [[0.6, 0.3, 0.0, 0.0], [0.0, 0.0, 0.6, 0.1], [0.04, 0.3, 0.2, 0.5]]
    given = batch(scores, 1)
    given["topk_ids"] = torch.tensor([[0, 1], [2, 3], [3, 1]], dtype=torch.int32)
    given["topk_weights"] = given["scores"].gather(1, given["topk_ids"].long())
    bias = torch.tensor([1.0, 0, 0, 0])
    got = run(given, budget=scalar(3), correction_bias=bias)  # expert 1 goes
    assert got.topk_ids[2].tolist() == [3, 0]
    torch.testing.assert_close(got.topk_weights[2], torch.tensor([0.5, 0.09]), rtol=1e-6, atol=0)


def test_exact_rows_are_free_for_the_others() -> None:
    given = batch(SHARED, 2)
    given["row_class"][0] = RowClass.EXACT
    got = run(given, budget=scalar(0))
    assert got.topk_ids.tolist() == [[0, 1], [0, 1]]
    assert got.num_active.item() == 2  # what is protected wins over the budget


def test_ties_go_to_the_lower_expert() -> None:
    scores = [[0.5, 0.25, 0.25, 0.0], [0.5, 0.25, 0.25, 0.0]]
    given = batch(scores, 2)
    given["topk_ids"] = torch.tensor([[0, 2], [0, 1]], dtype=torch.int32)
    assert run(given, budget=scalar(2)).topk_ids.tolist() == [[0, 1], [0, 1]]


def test_one_live_expert() -> None:
    got = run(batch([[0.9, 0.1], [0.8, 0.2]], 1), budget=scalar(0))
    assert got.active.tolist() == [True, False]


@every_policy
def test_all_pads(policy: str) -> None:
    given = batch(SHARED, 2)
    given["row_class"].fill_(RowClass.PAD)
    got = run(given, policy=policy, budget=scalar(1))
    assert (got.topk_ids == -1).all()
    assert not got.active.any()
    assert got.retained_mass.tolist() == [1, 1]


@every_policy
@pytest.mark.parametrize("value", [1.0, 7.0, float("nan")])
def test_demand_beyond_one_and_nan_act_as_one(policy: str, value: float) -> None:
    given = batch(SHARED, 2)
    expected = run(given, policy=policy, budget=scalar(2))
    got = run(given, policy=policy, budget=scalar(2), demand=scalar(value, torch.float32))
    assert torch.equal(got.topk_ids, expected.topk_ids)


@every_policy
@pytest.mark.parametrize("demand", [None, 0.5])
def test_the_device_path_reads_no_value_on_the_host(policy: str, demand: float | None) -> None:
    """Meta tensors hold no values: a sync or a data-dependent shape would raise."""
    given = batch(SHARED, 2, device="meta")
    phi = None if demand is None else scalar(demand, torch.float32).to("meta")
    bias = torch.zeros(4, device="meta")
    got = run(given, policy=policy, demand=phi, correction_bias=bias)
    assert got.topk_ids.shape == (2, 2)
    assert got.active.shape == (4,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_policy
def test_a_captured_graph_follows_the_budget(policy: str) -> None:
    given = batch(SHARED, 2, device="cuda")
    run(given, policy=policy)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(given, policy=policy)
    for budget in (4, 2, 1):
        given["budget"].fill_(budget)
        graph.replay()
        expected = run(batch(SHARED, 2), policy=policy, budget=scalar(budget))
        assert torch.equal(got.topk_ids.cpu(), expected.topk_ids)
        assert torch.equal(got.topk_weights.cpu(), expected.topk_weights)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", torch.rand(2, 4, dtype=torch.float64)),
        ("scores", torch.rand(4)),
        ("scores", torch.rand(3, 4)),
        ("topk_ids", torch.zeros(2, 2)),
        ("topk_ids", torch.zeros(2, dtype=torch.int32)),
        ("topk_weights", torch.rand(2, 3)),
        ("row_class", torch.zeros(2, dtype=torch.int32)),
        ("budget", torch.tensor(4)),
        ("budget", torch.tensor([4], dtype=torch.int32)),
        ("budget", torch.zeros((), dtype=torch.int32, device="meta")),
        ("floor", torch.tensor(1.0)),
        ("demand", torch.tensor(1)),
        ("correction_bias", torch.zeros(3)),
        ("contribution", torch.ones(3)),
        ("contribution", torch.ones(4, dtype=torch.float64)),
    ],
)
def test_bad_arguments_are_named(name: str, value: Tensor) -> None:
    with pytest.raises(ValueError, match=f"{name}.*expected.*got|topk_ids.*expected.*got"):
        run(batch(SHARED, 2), **{name: value})


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"lynx, full, .*, sere, random; got 'best'"):
        run(batch(SHARED, 2), policy="best")
