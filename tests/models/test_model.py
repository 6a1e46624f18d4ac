import pytest
import torch
from torch.nn import functional as F

from models.checkpoint import from_hub, to_hub
from models.experts import Experts
from models.hub_config import config_of, shape_of
from models.model import Batch, Model
from models.shape import Grouping, Shape

SMALL = Shape(vocabulary=40, layers=2, hidden=24, experts=7, top_k=3, inner=5, head_dim=8)
SIGMOID = Shape(
    vocabulary=40,
    layers=3,
    hidden=24,
    experts=8,
    top_k=3,
    inner=5,
    head_dim=8,
    grouping=Grouping(groups=4, kept_groups=2, scale=1.5),
    shared_experts=1,
    dense_layers=1,
    dense_inner=20,
)


def experts_reference(experts: Experts, x: torch.Tensor) -> torch.Tensor:
    """Token by token, expert by expert."""
    _, ids, weights = experts.choose(F.linear(x, experts.router.weight))
    scale = 1.0 if experts.grouping is None else experts.grouping.scale
    rows = []
    for token in range(x.shape[0]):
        row = torch.zeros_like(x[token])
        for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
            gate, up = (experts.gate_up[expert] @ x[token]).chunk(2)
            row = row + scale * weight * (experts.down[expert] @ (F.silu(gate) * up))
        if experts.shared is not None:
            gate, up = (experts.shared.gate_up @ x[token]).chunk(2)
            row = row + experts.shared.down @ (F.silu(gate) * up)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [SMALL, SIGMOID], ids=["softmax", "sigmoid"])
def test_experts_equal_the_reference_forwards_and_backwards(shape: Shape) -> None:
    torch.manual_seed(0)
    experts = Model(shape).moe_layers()[0].double()
    x = torch.randn(2, 24, dtype=torch.double, requires_grad=True)  # idle experts: 2 * 3 < 7
    inputs = [x, *experts.parameters()]
    for rows in (x, torch.cat([x] * 6) + torch.randn(12, 24, dtype=torch.double)):
        ours, _ = experts(rows)
        expected = experts_reference(experts, rows)
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
        direction = torch.randn_like(ours)
        grads = torch.autograd.grad((ours * direction).sum(), inputs, retain_graph=True)
        expected_grads = torch.autograd.grad((expected * direction).sum(), inputs)
        torch.testing.assert_close(grads, expected_grads, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [SMALL, SIGMOID], ids=["softmax", "sigmoid"])
def test_padding_changes_nothing(shape: Shape) -> None:
    torch.manual_seed(0)
    model = Model(shape)
    valid = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    ids = torch.randint(40, (9,))
    both, _ = model(ids, Batch(valid, torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2])))
    short, _ = model(ids[6:], Batch(valid[1:, :3], torch.arange(3)))
    torch.testing.assert_close(both[6:], short, atol=1e-5, rtol=0)


def test_a_dense_layer_routes_nothing() -> None:
    model = Model(SIGMOID)
    ids = torch.randint(40, (5,))
    logits, routings = model(ids, Batch(torch.ones(1, 5, dtype=torch.bool), torch.arange(5)))
    assert logits.shape == (5, 40)
    assert len(routings) == len(model.moe_layers()) == 2
    assert routings[0].probabilities.shape == (5, 8)
    assert routings[0].ids.shape == (5, 3)


@pytest.mark.parametrize("shape", [SMALL, SIGMOID], ids=["softmax", "sigmoid"])
def test_the_hub_names_round_trip(shape: Shape) -> None:
    torch.manual_seed(0)
    model = Model(shape)
    for experts in model.moe_layers():
        if experts.bias is not None:
            experts.bias.normal_()
    assert shape_of(config_of(shape, end=2, pad=0)) == shape
    stored = to_hub(model)
    again = to_hub(from_hub(stored, shape))
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in stored.values()}) == len(stored)


def test_another_architecture_is_refused() -> None:
    config = config_of(SMALL, end=2, pad=0) | {"architectures": ["LlamaForCausalLM"]}
    with pytest.raises(ValueError, match="got 'LlamaForCausalLM'"):
        shape_of(config)
