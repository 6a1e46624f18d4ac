import torch
from model import Batch, Experts, Model, Shape
from torch.nn import functional as F

SMALL = Shape(vocabulary=40, layers=2, hidden=24, experts=7, top_k=3, inner=5, head_dim=8)


def experts_reference(experts: Experts, x: torch.Tensor) -> torch.Tensor:
    """Token by token, expert by expert."""
    weights, ids = F.linear(x, experts.router.weight).softmax(-1).topk(experts.top_k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    rows = []
    for token in range(x.shape[0]):
        row = torch.zeros_like(x[token])
        for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
            gate, up = (experts.gate_up[expert] @ x[token]).chunk(2)
            row = row + weight * (experts.down[expert] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def test_experts_equal_the_reference_forwards_and_backwards() -> None:
    torch.manual_seed(0)
    experts = Model(SMALL).layers[0].experts.double()
    x = torch.randn(2, 24, dtype=torch.double, requires_grad=True)  # idle experts: 2 * 3 < 7
    inputs = [x, experts.router.weight, experts.gate_up, experts.down]
    for rows in (x, torch.cat([x] * 6) + torch.randn(12, 24, dtype=torch.double)):
        ours, _ = experts(rows)
        expected = experts_reference(experts, rows)
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
        direction = torch.randn_like(ours)
        grads = torch.autograd.grad((ours * direction).sum(), inputs, retain_graph=True)
        expected_grads = torch.autograd.grad((expected * direction).sum(), inputs)
        torch.testing.assert_close(grads, expected_grads, atol=1e-12, rtol=0)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Model(SMALL)
    valid = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    ids = torch.randint(40, (9,))
    both, _ = model(ids, Batch(valid, torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2])))
    short, _ = model(ids[6:], Batch(valid[1:, :3], torch.arange(3)))
    torch.testing.assert_close(both[6:], short, atol=1e-5, rtol=0)
