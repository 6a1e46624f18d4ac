"""`fused_moe` against its reference and, bit for bit, against SGLang's native CPU path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lynx_kernels import CpuExperts, fused_moe, fused_moe_reference, scratch

Native = Callable[..., Tensor]
# (M, E, K, H, I)
SHAPES = {
    "one row": (1, 64, 4, 128, 48),
    "few rows, idle experts": (4, 64, 4, 128, 48),
    "decode batch": (16, 64, 4, 128, 48),
    "prefill": (512, 64, 4, 128, 48),
    "prime E, odd H and I": (37, 7, 3, 33, 13),
    "odd I alone": (40, 7, 3, 64, 13),
    "odd H alone": (40, 7, 3, 33, 16),
    "one expert": (5, 1, 1, 32, 16),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"]
)


def layer(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, seed: int = 0
) -> tuple[Tensor, ...]:
    """hidden, w13, w2, topk_ids, topk_weights"""
    num_rows, num_experts, top_k, hidden_size, inner_size = shape
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, hidden_size, generator=rng)
    w13 = torch.randn(num_experts, 2 * inner_size, hidden_size, generator=rng) / hidden_size**0.5
    w2 = torch.randn(num_experts, hidden_size, inner_size, generator=rng) / inner_size**0.5
    router = torch.randn(num_rows, num_experts, generator=rng).softmax(dim=1)
    weights, ids = router.topk(top_k, dim=1)
    return hidden.to(dtype), w13.to(dtype), w2.to(dtype), ids.int(), weights


def biases(shape: tuple[int, ...], *, seed: int = 1) -> dict[str, Tensor]:
    _, num_experts, _, hidden_size, inner_size = shape
    rng = torch.Generator().manual_seed(seed)
    return {
        "w13_bias": torch.randn(num_experts, 2 * inner_size, generator=rng),
        "w2_bias": torch.randn(num_experts, hidden_size, generator=rng),
    }


@pytest.fixture
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def native() -> Native:
    from sglang.srt.layers.moe.fused_moe_native import moe_forward_native
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    def forward(
        hidden: Tensor,
        w13: Tensor,
        w2: Tensor,
        ids: Tensor,
        weights: Tensor,
        *,
        w13_bias: Tensor | None = None,
        w2_bias: Tensor | None = None,
        activation: str = "silu",
    ) -> Tensor:
        experts = SimpleNamespace(
            num_experts=w13.shape[0],
            w13_weight=w13,
            w2_weight=w2,
            w13_weight_bias=w13_bias,
            w2_weight_bias=w2_bias,
        )
        config = MoeRunnerConfig(activation=activation)
        return moe_forward_native(experts, hidden, StandardTopKOutput(weights, ids, None), config)

    return forward


@every_dtype
@every_shape
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_bit_for_bit_equal_to_native(
    native: Native, shape: tuple[int, ...], dtype: torch.dtype, activation: str
) -> None:
    given = layer(shape, dtype)
    got = fused_moe(*given, activation=activation)
    assert torch.equal(got, native(*given, activation=activation))


@pytest.mark.usefixtures("_two_threads")
@every_dtype
@pytest.mark.parametrize("name", ["decode batch", "prefill", "prime E, odd H and I"])
def test_threads_do_not_break_equality(native: Native, name: str, dtype: torch.dtype) -> None:
    given = layer(SHAPES[name], dtype)
    assert torch.equal(fused_moe(*given), native(*given))


@every_dtype
def test_biases_are_bit_for_bit_equal_to_native(native: Native, dtype: torch.dtype) -> None:
    shape = SHAPES["prime E, odd H and I"]
    given, bias = layer(shape, dtype), biases(shape)
    assert torch.equal(fused_moe(*given, **bias), native(*given, **bias))


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("is_weighing_input", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_holes", [False, True])
def test_equal_to_reference(
    id_dtype: torch.dtype, is_weighing_input: bool, has_bias: bool, has_holes: bool
) -> None:
    shape = SHAPES["prime E, odd H and I"]
    hidden, w13, w2, ids, weights = layer(shape)
    if has_holes:
        ids[::2, 1] = -1
        ids[3] = -1
    options = {"apply_router_weight_on_input": is_weighing_input}
    options |= biases(shape) if has_bias else {}
    given = (hidden, w13, w2, ids.to(id_dtype), weights)
    got, expected = fused_moe(*given, **options), fused_moe_reference(*given, **options)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    if has_holes:
        assert (got[3] == 0).all()


def test_bf16_is_near_the_fp32_reference() -> None:
    given = layer(SHAPES["decode batch"], torch.bfloat16)
    torch.testing.assert_close(fused_moe(*given), fused_moe_reference(*given), rtol=2e-2, atol=2e-2)


@every_shape
@pytest.mark.parametrize("has_holes", [False, True])
def test_no_uninitialised_memory_reaches_the_output(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], has_holes: bool
) -> None:
    given = layer(shape)
    if has_holes:
        given[3][0] = -1
    expected = fused_moe(*given)
    monkeypatch.setattr(
        scratch, "empty", lambda rows, columns, like: like.new_full((rows, columns), float("nan"))
    )
    assert torch.equal(fused_moe(*given), expected)


def test_empty_slots_ignore_their_weight() -> None:
    hidden, w13, w2, ids, weights = layer(SHAPES["decode batch"])
    ids[:, 2] = -1
    expected = fused_moe(hidden, w13, w2, ids, weights)
    weights[:, 2] = float("nan")
    assert torch.equal(fused_moe(hidden, w13, w2, ids, weights), expected)


@pytest.mark.parametrize("num_rows", [0, 3])
def test_no_row_or_no_expert_gives_zeros(num_rows: int) -> None:
    hidden, w13, w2, ids, weights = layer((num_rows, 5, 2, 16, 8))
    ids.fill_(-1)
    assert torch.equal(fused_moe(hidden, w13, w2, ids, weights), torch.zeros(num_rows, 16))


@every_dtype
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_a_ranks_experts_skip_what_is_remote(dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    """Each of three ranks against the reference, and their sum against one that has them all."""
    hidden, w13, w2, ids, weights = layer(SHAPES["prime E, odd H and I"], dtype)
    ids = ids.to(id_dtype)
    ids[0], ids[1, 0] = torch.tensor([5, 6, -1]), -1
    total = torch.zeros(hidden.shape)
    for first, end in ((0, 3), (3, 5), (5, 7)):
        given = (hidden, w13[first:end], w2[first:end], ids, weights)
        got = fused_moe(*given, first_expert=first)
        expected = fused_moe_reference(*given, first_expert=first)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
        is_remote = ((ids < first) | (ids >= end)).all(dim=1)
        assert is_remote[0] == (first < 5)
        assert (got[is_remote] == 0).all()
        total += got.float()
    whole = fused_moe(hidden, w13, w2, ids, weights).float()
    torch.testing.assert_close(total, whole, rtol=tolerance, atol=2 * tolerance)


def test_a_rank_without_a_local_expert_gives_zeros() -> None:
    hidden, w13, w2, ids, weights = layer(SHAPES["decode batch"])
    got = fused_moe(hidden, w13[:8], w2[:8], ids, weights, first_expert=64)
    assert torch.equal(got, torch.zeros_like(hidden))


def test_inputs_are_not_written() -> None:
    given, untouched = layer(SHAPES["decode batch"]), layer(SHAPES["decode batch"])
    fused_moe(*given)
    assert all(torch.equal(a, b) for a, b in zip(given, untouched, strict=True))


def test_prepared_experts_see_weights_updated_in_place() -> None:
    hidden, w13, w2, ids, weights = layer(SHAPES["decode batch"])
    experts = CpuExperts(w13, w2)
    w13.mul_(2)
    w2.add_(0.1)
    expected = fused_moe(hidden, w13, w2, ids, weights)
    assert torch.equal(experts(hidden, ids, weights), expected)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hidden", {0: torch.rand(4)}),
        ("w13", {1: torch.rand(5, 16, 15)}),
        ("w13", {1: torch.rand(5, 15, 16)}),
        ("w13", {1: torch.rand(5, 16, 16).bfloat16()}),
        ("w2", {2: torch.rand(4, 16, 8)}),
        ("topk_ids", {3: torch.zeros(4, 2)}),
        ("topk_ids", {3: torch.full((4, 2), 5)}),
        ("topk_weights", {4: torch.rand(4, 3)}),
        ("topk_weights", {4: torch.zeros(4, 2, dtype=torch.int32)}),
    ],
)
def test_bad_arguments_are_named(name: str, changes: dict[int, Tensor]) -> None:
    given = list(layer((4, 5, 2, 16, 8)))
    for position, value in changes.items():
        given[position] = value
    with pytest.raises(ValueError, match=rf"{name}: expected .* got"):
        fused_moe(*given)


def test_a_negative_first_expert_is_refused() -> None:
    with pytest.raises(ValueError, match="first_expert: expected 0 or more, got -1"):
        fused_moe(*layer((4, 5, 2, 16, 8)), first_expert=-1)


def test_an_unknown_activation_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="silu, gelu, swiglu_clamped; got 'relu'"):
        fused_moe(*layer((4, 5, 2, 16, 8)), activation="relu")
