"""Sketches: the operator against its reference, the fit against ridge regression, the bytes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from benchmarks.frontier.gate import Setting
from benchmarks.frontier.sharing import routed
from benchmarks.sketches.allocation import allocate, hull
from benchmarks.sketches.factors import Factors, Sketch
from benchmarks.sketches.fit import Moments, fit
from benchmarks.sketches.operator import (
    add_sketches,
    add_sketches_reference,
    lost_slots,
    values_read,
)
from benchmarks.sketches.sketched import Sketched, sketching
from lynx_kernels import POLICIES
from models.experts import Experts
from models.model import Model
from models.shape import Shape

H = 12
SMALL = Shape(vocabulary=320, layers=1, hidden=32, heads=2, kv_heads=1, experts=12, inner=8)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator)


def factors_of(ranks, hidden=H):
    return Factors.of(
        [
            Sketch(
                drawn(rank, hidden, seed=i),
                drawn(hidden, rank, seed=i + 50),
                drawn(hidden, seed=i) if i % 2 else None,
            )
            for i, rank in enumerate(ranks)
        ]
    )


def moments_of(x, y, weights):
    sums = Moments.empty(x.shape[1])
    sums.note(x, y, weights)
    return sums


@pytest.fixture
def tokens():
    """An affine map of x through a curve, and weights as routers give them."""
    x = drawn(200, H) + 1
    y = torch.tanh(x @ drawn(H, H, seed=3) / 3) + 0.5
    return x, y, torch.rand(200, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [1, 7, 33])
@pytest.mark.parametrize("ranks", [(0, 0, 0), (1, 0, 3, 2, 5), (H,) * 4])
def test_the_operator_is_its_reference(rows, ranks):
    factors = factors_of(ranks)
    x, out, weights = drawn(rows, H), drawn(rows, H, seed=9), drawn(rows, 3)
    ids = torch.randint(-1, len(ranks), (rows, 3), generator=torch.Generator().manual_seed(rows))
    got = add_sketches(out, x, ids, weights, factors)
    expected = add_sketches_reference(out, x, ids, weights, factors)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(got, add_sketches(out, x, ids, weights, factors))
    untouched = (ids < 0).all(dim=1)
    assert torch.equal(got[untouched].view(torch.int32), out[untouched].view(torch.int32))


def test_a_row_that_loses_nothing_keeps_even_its_negative_zeros():
    out = torch.full((2, H), -0.0)
    ids = torch.tensor([[-1, -1], [0, -1]])
    poison = torch.tensor([[torch.nan, torch.inf], [1.0, torch.nan]])
    got = add_sketches(out, drawn(2, H), ids, poison, factors_of((2,)))
    assert torch.equal(got[0].view(torch.int32), out[0].view(torch.int32))
    assert got.isfinite().all()


def test_rows_do_not_depend_on_their_order():
    factors, order = factors_of((2, 3, 1)), torch.tensor([3, 0, 4, 1, 2])
    x, out, weights = drawn(5, H), drawn(5, H, seed=4), drawn(5, 2)
    ids = torch.tensor([[0, 1], [2, -1], [1, 0], [-1, -1], [0, 2]])
    got = add_sketches(out, x, ids, weights, factors)[order]
    other = add_sketches(out[order], x[order], ids[order], weights[order], factors)
    torch.testing.assert_close(got, other, rtol=1e-6, atol=1e-6)


def test_wrong_shapes_and_experts_are_named():
    factors = factors_of((1, 1))
    x, weights = drawn(2, H), drawn(2, 1)
    with pytest.raises(ValueError, match="ids: expected -1 to 1, got 0 to 2"):
        add_sketches(x, x, torch.tensor([[0], [2]]), weights, factors)
    with pytest.raises(ValueError, match=r"ids, weights: expected \[2, K\]"):
        add_sketches(x, x, torch.tensor([[0]]), weights, factors)
    with pytest.raises(ValueError, match="out, x: expected"):
        add_sketches(x[:, 1:], x[:, 1:], torch.tensor([[0], [1]]), weights, factors)


def test_lost_slots_and_what_they_read():
    before, after = torch.tensor([[3, 1], [0, 2]]), torch.tensor([[1, 0], [0, 2]])
    lost = lost_slots(before, after)
    assert lost.tolist() == [[3, -1], [-1, -1]]
    factors = factors_of((1, 2, 0, 4))
    steps = torch.stack([lost, torch.tensor([[3, 0], [3, -1]])])
    assert values_read(steps, factors).tolist() == [9 * H, 9 * H + 2 * H]


def test_rank_0_is_the_mean_and_full_rank_is_ridge(tokens):
    x, y, weights = tokens
    ridge = 0.1
    got = fit(moments_of(x, y, weights), ridge, is_centred=True)
    root = weights.double().sqrt().unsqueeze(1)
    mean_x, mean_y = (
        (weights.double() @ each.double()) / weights.double().sum() for each in (x, y)
    )
    a, b = root * (x.double() - mean_x), root * (y.double() - mean_y)
    gram = a.t() @ a
    expected = torch.linalg.solve(
        gram + ridge * gram.diagonal().mean() * torch.eye(H).double(), a.t() @ b
    )
    mean = got.at(0)
    assert mean.bias is not None
    torch.testing.assert_close(mean.bias, mean_y.float(), rtol=1e-5, atol=1e-5)
    full = Factors.of([got.at(H)]).of_expert(0, x)
    torch.testing.assert_close(
        full, (mean_y + (x - mean_x) @ expected).float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("is_centred", [False, True])
def test_explained_energy_is_that_of_the_sketch(tokens, is_centred):
    x, y, weights = tokens
    got = fit(moments_of(x[:100], y[:100], weights[:100]), 0.01, is_centred)
    x, y, weights = x[100:], y[100:], weights[100:]
    energies = got.explained(moments_of(x, y, weights))
    for rank in (0, 1, 5, H):
        misses = y - Factors.of([got.at(rank)]).of_expert(0, x)
        expected = (weights.unsqueeze(1) * (y.square() - misses.square())).sum()
        assert float(energies[rank]) == pytest.approx(float(expected), rel=1e-4, abs=1e-3)


def test_ranks_are_the_best_of_their_size(tokens):
    """On its own tokens and without a ridge, no other map of a rank explains more."""
    x, y, weights = tokens
    sums = moments_of(x, y, weights)
    energies = fit(sums, 0.0, is_centred=True).explained(sums)
    gains = energies.diff()
    assert (gains >= -1e-6).all()
    assert (gains.diff() <= 1e-6).all()


def test_sums_stream(tokens):
    x, y, weights = tokens
    parts = Moments.empty(H)
    for some in torch.arange(200).split(33):
        parts = parts + moments_of(x[some], y[some], weights[some])
    whole = moments_of(x, y, weights)
    torch.testing.assert_close(parts.xy, whole.xy, rtol=1e-9, atol=1e-9)
    assert parts.energy == pytest.approx(whole.energy)


def test_fewer_tokens_than_dimensions_give_a_sketch_of_them(tokens):
    x, y, weights = (each[:5] for each in tokens)
    got = fit(moments_of(x, y, weights), 0.0, is_centred=False)
    torch.testing.assert_close(Factors.of([got.at(5)]).of_expert(0, x), y, rtol=1e-3, atol=1e-3)


def test_a_fit_names_what_it_cannot_take(tokens):
    with pytest.raises(ValueError, match="sums: expected tokens"):
        fit(Moments.empty(H), 0.1, is_centred=True)
    with pytest.raises(ValueError, match="ridge: expected at least 0, got -1"):
        fit(moments_of(*tokens), -1, is_centred=True)


def test_the_hull_drops_what_a_mixture_beats():
    assert hull([(1, 1.0), (2, 1.5), (3, 4.0), (4, 4.0), (5, 3.0), (6, 5.0)]) == [2, 5]
    assert hull([(1, -1.0), (2, 0.0)]) == []


def test_bytes_go_where_they_explain_most():
    options = [[(1, 5.0), (2, 6.0)], [(1, 3.0), (2, 5.5)], [(1, 0.0)]]
    assert allocate(options, 0) == [None, None, None]
    assert allocate(options, 1) == [0, None, None]
    assert allocate(options, 3) == [0, 1, None]
    assert allocate(options, 9) == [1, 1, None]


def test_allocation_keeps_its_budget_and_is_near_the_best():
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        options = [
            [
                (1 + 2 * i, float(g))
                for i, g in enumerate(torch.rand(3, generator=generator).cumsum(0))
            ]
            for _ in range(3)
        ]
        chosen = allocate(options, 7)

        def total(picks, column, options=options):
            return sum(options[e][p][column] for e, p in enumerate(picks) if p is not None)

        assert total(chosen, 0) <= 7
        best = max(
            total(picks, 1)
            for picks in itertools.product((None, 0, 1, 2), repeat=3)
            if total(picks, 0) <= 7
        )
        assert total(chosen, 1) >= best / 2


@pytest.mark.parametrize(("budget", "floor"), [(4, 1), (1, 0), (12, 1)])
def test_a_layer_adds_the_sketches_of_what_its_gate_took(budget, floor):
    torch.manual_seed(0)
    model = Model(SMALL).eval()
    (layer,), x = model.moe_layers(), drawn(8, SMALL.hidden)
    factors = factors_of([1, 0, 2] * 4, SMALL.hidden)
    policy = replace(POLICIES["lynx"], is_refilling=False)
    gate = Sketched(
        Setting(policy, budget, None, floor), steps=torch.arange(8).view(2, 4), factors=[factors]
    )
    with torch.inference_mode(), routed(model, gate), sketching(model, gate):
        got, _ = layer(x)
    with torch.inference_mode():
        whole, _ = layer(x)
        _, ids, weights = Experts.choose(layer, layer.router(x))
        kept = gate(0, *Experts.choose(layer, layer.router(x)), layer)
        lost = lost_slots(ids, kept[0])
        out = layer.compute(x, ids, weights.masked_fill(lost >= 0, 0.0))
        expected = add_sketches_reference(out, x, lost, weights, factors)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    is_whole = (lost < 0).all(dim=1)
    assert torch.equal(got[is_whole], whole[is_whole])
    assert gate.values_per_layer() == values_read(lost.view(2, 4, -1), factors).double().mean()
    assert is_whole.all() == (budget == 12)
