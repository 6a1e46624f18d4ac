"""A model whose lost slots are sketched, in the frontier's instrument."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.frontier.gate import Setting
from benchmarks.frontier.sharing import routed
from benchmarks.sketches.sketched import Sketched, sketching, values_read
from lynx_kernels import POLICIES
from lynx_kernels.sketch import LayerSketches, Sketch, add_sketches_reference, lost_slots
from models.experts import Experts
from models.model import Model
from models.shape import Shape

H = 12
SMALL = Shape(vocabulary=320, layers=1, hidden=32, heads=2, kv_heads=1, experts=12, inner=8)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator)


def factors_of(ranks, hidden=H):
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


def test_lost_slots_and_what_they_read():
    before, after = torch.tensor([[3, 1], [0, 2]]), torch.tensor([[-1, 1], [0, 2]])
    lost = lost_slots(before, after)
    assert lost.tolist() == [[3, -1], [-1, -1]]
    factors = factors_of((1, 2, 0, 4))
    steps = torch.stack([lost, torch.tensor([[3, 0], [3, -1]])])
    assert values_read(steps, factors).tolist() == [9 * H, 9 * H + 2 * H]


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
