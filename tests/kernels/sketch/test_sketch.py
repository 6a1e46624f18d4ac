"""Sketches: the operator against its reference, in every form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lynx_kernels import POLICIES, RowClass, select
from lynx_kernels.sketch import (
    LayerSketches,
    Sketch,
    add_sketches,
    add_sketches_reference,
    covered_mass,
    lost_slots,
)

H = 12


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator)


def sketches_of(ranks: tuple[int, ...], hidden: int = H) -> LayerSketches:
    return LayerSketches.of(
        [
            Sketch(
                drawn(rank, hidden, seed=i),
                drawn(hidden, rank, seed=i + 50),
                drawn(hidden, seed=i) if i % 2 else None,
            )
            for i, rank in enumerate(ranks)
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # compiled, and torch
@pytest.mark.parametrize("rows", [1, 7, 33])
@pytest.mark.parametrize("ranks", [(0, 0, 0), (1, 0, 3, 2, 5), (H,) * 4])
def test_the_operator_is_its_reference(
    rows: int, ranks: tuple[int, ...], dtype: torch.dtype
) -> None:
    sketches = sketches_of(ranks).to(torch.device("cpu"), dtype)
    x, out, weights = drawn(rows, H).to(dtype), drawn(rows, H, seed=9).to(dtype), drawn(rows, 3)
    ids = torch.randint(-1, len(ranks), (rows, 3), generator=torch.Generator().manual_seed(rows))
    got = add_sketches(out.clone(), x, ids, weights, sketches)
    expected = add_sketches_reference(out, x, ids, weights, sketches)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(got, add_sketches(out.clone(), x, ids.int(), weights, sketches))
    untouched = (ids < 0).all(dim=1)
    assert torch.equal(got[untouched].view(torch.int32), out[untouched].view(torch.int32))


def test_a_row_that_loses_nothing_keeps_even_its_negative_zeros() -> None:
    out = torch.full((2, H), -0.0)
    ids = torch.tensor([[-1, -1], [0, -1]])
    poison = torch.tensor([[torch.nan, torch.inf], [1.0, torch.nan]])
    got = add_sketches(out.clone(), drawn(2, H), ids, poison, sketches_of((2,)))
    assert torch.equal(got[0].view(torch.int32), out[0].view(torch.int32))
    assert got.isfinite().all()


def test_the_output_is_written_in_place() -> None:
    out, ids = drawn(2, H), torch.tensor([[0], [-1]])
    assert add_sketches(out, drawn(2, H), ids, torch.ones(2, 1), sketches_of((2,))) is out


def test_rows_do_not_depend_on_their_order() -> None:
    sketches, order = sketches_of((2, 3, 1)), torch.tensor([3, 0, 4, 1, 2])
    x, out, weights = drawn(5, H), drawn(5, H, seed=4), drawn(5, 2)
    ids = torch.tensor([[0, 1], [2, -1], [1, 0], [-1, -1], [0, 2]])
    got = add_sketches(out.clone(), x, ids, weights, sketches)[order]
    other = add_sketches(out[order], x[order], ids[order], weights[order], sketches)
    assert torch.equal(got, other)


def test_wrong_shapes_and_experts_are_named() -> None:
    sketches = sketches_of((1, 1))
    x, weights = drawn(2, H), drawn(2, 1)
    with pytest.raises(IndexError, match="lost_ids: an expert without a sketch"):
        add_sketches(x.clone(), x, torch.tensor([[0], [2]]), weights, sketches)
    with pytest.raises(ValueError, match=r"lost_ids, weights: expected \[2, K\]"):
        add_sketches(x, x, torch.tensor([[0]]), weights, sketches)
    with pytest.raises(ValueError, match="out, x: expected"):
        add_sketches(x[:, 1:], x[:, 1:], torch.tensor([[0], [1]]), weights, sketches)
    with pytest.raises(ValueError, match="sketches: expected one for each expert"):
        LayerSketches.of([])


@pytest.mark.parametrize("budget", [3, 9])
def test_lost_slots_are_those_that_selection_leaves_empty(budget: int) -> None:
    scores = drawn(8, 16).softmax(dim=1)
    weights, ids = scores.topk(4)
    ids[0, 3] = 16  # a fused shared expert
    classes = torch.full((8,), int(RowClass.FLEXIBLE), dtype=torch.uint8)
    classes[1] = int(RowClass.EXACT)
    cap, floor = torch.tensor(budget, dtype=torch.int32), torch.tensor(1, dtype=torch.int32)
    policy = replace(POLICIES["lynx"], is_refilling=False)
    chosen = select(scores, ids, weights, classes, budget=cap, floor=floor, policy=policy)
    lost = lost_slots(ids, chosen.topk_ids)
    assert (lost[1] == -1).all()
    assert lost[0, 3] == -1
    assert (lost >= 0).any()
    kept = lost < 0
    assert torch.equal(chosen.topk_ids[kept], ids[kept])
    assert torch.equal(chosen.topk_weights[kept], weights[kept])
    own = weights.masked_fill(ids >= 16, 0.0)
    ones = torch.cat([torch.ones(16), torch.zeros(1)])
    covered = covered_mass(chosen.retained_mass, own, lost, ones)
    torch.testing.assert_close(covered, torch.ones(8))
    nothing = covered_mass(chosen.retained_mass, own, lost, torch.zeros(17))
    assert torch.equal(nothing, chosen.retained_mass)
