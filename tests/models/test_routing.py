import pytest
import torch

from models.routing import balance_loss, balanced_bias, grouped_top_k, softmax_top_k
from models.shape import Grouping, Shape


@pytest.mark.parametrize(
    ("experts", "top_k", "grouping"),
    [
        (64, 6, Grouping(8, 4, 2.5)),  # lynx-moe-sigmoid
        (256, 8, Grouping(8, 4, 2.5)),  # DeepSeek-V3
        (128, 8, Grouping(1, 1, 1.0)),  # GLM-4.5: one group
        (21, 5, Grouping(3, 1, 1.0)),  # odd sizes; the row fills most of its only group
    ],
)
def test_grouped_top_k_is_sglangs(experts: int, top_k: int, grouping: Grouping) -> None:
    topk = pytest.importorskip("sglang.srt.layers.moe.topk")
    torch.manual_seed(experts)
    logits, bias = torch.randn(200, experts) * 2, torch.randn(experts) * 0.3
    _, ids, weights = grouped_top_k(logits, bias, top_k, grouping)
    with torch.compiler.set_stance("force_eager"):
        their_weights, their_ids = topk.biased_grouped_topk_impl(
            torch.empty(200, 1),
            logits,
            bias,
            top_k,
            renormalize=True,
            num_expert_group=grouping.groups,
            topk_group=grouping.kept_groups,
            routed_scaling_factor=grouping.scale,
        )

    def rows(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.zeros(200, experts).scatter(1, ids.long(), weights)

    assert torch.equal(rows(ids, torch.ones(200, top_k)).sum(1), torch.full((200,), float(top_k)))
    torch.testing.assert_close(
        rows(ids, weights), rows(their_ids, their_weights), atol=1e-6, rtol=0
    )


def test_softmax_top_k_is_sglangs() -> None:
    topk = pytest.importorskip("sglang.srt.layers.moe.topk")
    torch.manual_seed(0)
    logits = torch.randn(200, 60)
    _, ids, weights = softmax_top_k(logits, 8)
    their_weights, their_ids = topk.fused_topk_torch_native(torch.empty(200, 1), logits, 8, True)
    assert torch.equal(ids, their_ids.long())
    torch.testing.assert_close(weights, their_weights, atol=1e-6, rtol=0)


def test_the_bias_chooses_and_does_not_weigh() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    one_group = Grouping(1, 1, 1.0)
    _, plain, _ = grouped_top_k(logits, torch.zeros(4), 2, one_group)
    assert set(plain[0].tolist()) == {0, 1}
    _, ids, weights = grouped_top_k(logits, torch.tensor([0.0, 0.0, 0.0, 5.0]), 2, one_group)
    assert ids[0].tolist() == [3, 0]
    expected = logits.sigmoid()[0, [3, 0]]
    torch.testing.assert_close(weights[0], expected / expected.sum(), atol=1e-7, rtol=0)


def test_gradients_reach_the_logits_through_the_weights_alone() -> None:
    logits = torch.randn(5, 8, requires_grad=True)
    _, ids, weights = grouped_top_k(logits, torch.randn(8), 3, Grouping(2, 1, 1.0))
    (weights * torch.randn(5, 3)).sum().backward()
    assert logits.grad is not None
    is_chosen = torch.zeros(5, 8, dtype=torch.bool).scatter(1, ids, True)
    assert torch.equal(logits.grad != 0, is_chosen)


def test_balancing_evens_out_what_a_skewed_router_chooses() -> None:
    torch.manual_seed(0)
    logits, bias = torch.randn(2000, 16) + torch.linspace(-1, 1, 16), torch.zeros(16)
    grouping = Grouping(4, 2, 1.0)

    def loads() -> torch.Tensor:
        _, ids, _ = grouped_top_k(logits, bias, 4, grouping)
        return torch.bincount(ids.flatten(), minlength=16).float()

    assert loads().max() > 2 * loads().mean()
    for _ in range(400):
        bias = balanced_bias(bias, loads(), rate=2e-3)
    assert loads().max() < 1.1 * loads().mean()


def test_balance_loss_is_one_at_best_and_rises_with_skew() -> None:
    even = torch.full((8, 4), 0.25)
    ids = torch.arange(8).view(8, 1) % 4
    assert balance_loss(even, ids).item() == pytest.approx(1.0)
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(8, 1)
    assert balance_loss(skewed, torch.zeros(8, 1, dtype=torch.long)).item() == pytest.approx(2.8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"experts": 62, "grouping": Grouping(8, 4, 1.0)}, "multiple of 8 groups.*got 62"),
        ({"experts": 8, "grouping": Grouping(8, 4, 1.0)}, "groups of 2 or more, got 8"),
        ({"top_k": 17, "grouping": Grouping(8, 2, 1.0)}, r"top_k must be in 1\.\.16, got 17"),
        ({"top_k": 65}, r"top_k must be in 1\.\.64, got 65"),
        ({"dense_layers": 8}, r"dense_layers must be in 0\.\.7, got 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shape(**sizes)  # type: ignore[arg-type]
