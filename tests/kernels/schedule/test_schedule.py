"""`build_schedule_reference` by hand, and as what a schedule promises."""

from __future__ import annotations

import pytest
import torch

from lynx_kernels.schedule import build_schedule_reference


def routing(num_rows: int, num_experts: int, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct experts in each row, some slots empty."""
    random = torch.Generator().manual_seed(num_rows + num_experts)
    scores = torch.rand(num_rows, num_experts, generator=random)
    weights, ids = scores.topk(top_k, dim=1)
    return ids.masked_fill(weights < 0.5, -1), weights


def test_rows_are_sorted_by_expert_then_token() -> None:
    ids = torch.tensor([[5, 2], [2, -1], [0, 5]], dtype=torch.int32)
    weights = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    got = build_schedule_reference(ids, weights, 6)
    assert got.num_active.tolist() == [3]
    assert got.experts[:3].tolist() == [0, 2, 5]
    assert got.counts[:3].tolist() == [1, 2, 2]
    assert got.offsets[:3].tolist() == [0, 1, 3]
    assert got.tokens[:5].tolist() == [2, 0, 1, 0, 2]
    torch.testing.assert_close(
        got.weights[:5], torch.tensor([0.5, 0.2, 0.3, 0.1, 0.6]), rtol=0, atol=0
    )
    assert got.slots.tolist() == [[3, 1], [2, -1], [0, 4]]


def test_remote_experts_are_skipped() -> None:
    ids = torch.tensor([[5, 2], [2, 3]])
    got = build_schedule_reference(ids, torch.ones(2, 2), 2, first_expert=2)
    assert got.num_active.tolist() == [2]
    assert got.experts[:2].tolist() == [0, 1]  # 2 and 3, as the rank's weights count them
    assert got.slots.tolist() == [[-1, 0], [1, 2]]


@pytest.mark.parametrize(
    ("num_rows", "num_experts", "top_k"),
    [(1, 8, 2), (9, 13, 3), (6, 1, 1), (2, 64, 2), (5, 4, 4), (0, 8, 2)],
    ids=["M=1", "prime E", "one expert", "idle experts", "K=E", "no rows"],
)
def test_slots_and_rows_point_at_each_other(num_rows: int, num_experts: int, top_k: int) -> None:
    ids, weights = routing(num_rows, num_experts, top_k)
    got = build_schedule_reference(ids, weights, num_experts)
    num_active = int(got.num_active)
    expert_of_row = torch.repeat_interleave(got.experts[:num_active], got.counts[:num_active])
    assert len(expert_of_row) == int((ids >= 0).sum())
    for token in range(num_rows):
        for slot in range(top_k):
            row = int(got.slots[token, slot])
            if row < 0:
                assert ids[token, slot] == -1
                continue
            assert got.tokens[row] == token
            assert got.weights[row] == weights[token, slot]
            assert expert_of_row[row] == ids[token, slot]


def test_all_slots_empty() -> None:
    got = build_schedule_reference(torch.full((3, 2), -1), torch.ones(3, 2), 4)
    assert got.num_active.tolist() == [0]
    assert (got.slots == -1).all()


def test_sizes_and_types_are_fixed() -> None:
    """Meta tensors hold no values: a sync or a data-dependent shape would raise."""
    ids = torch.zeros(3, 2, dtype=torch.int64, device="meta")
    got = build_schedule_reference(ids, torch.zeros(3, 2, device="meta"), 8)
    assert got.experts.shape == got.counts.shape == got.offsets.shape == (8,)
    assert got.tokens.shape == got.weights.shape == (6,)
    assert got.slots.shape == (3, 2)
    integers = (got.num_active, got.experts, got.counts, got.offsets, got.tokens, got.slots)
    assert {t.dtype for t in integers} == {torch.int32}
    assert got.weights.dtype == torch.float32
