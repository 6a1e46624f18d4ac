"""`fused_moe_triton` against the reference: under Triton's interpreter, or on a GPU

Run by test_fused_moe_triton.py in a process of its own, since Triton reads TRITON_INTERPRET once,
when it is first imported. On a GPU:

    python -m pytest tests/kernels/fused_moe/fused_moe_triton_cases.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from lynx_kernels import POLICIES, RowClass, fused_moe_reference
from lynx_kernels.fused_moe import Workspace, fused_moe_triton, tuning
from lynx_kernels.schedule import Schedule, build_schedule_reference
from lynx_kernels.select.triton_form import select_triton

IS_INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
NAN = float("nan")

pytestmark = pytest.mark.skipif(
    not IS_INTERPRETED and not torch.cuda.is_available(), reason="needs TRITON_INTERPRET=1 or a GPU"
)

# (M, E, K, H, I)
SHAPES = {
    "M=1": (1, 8, 2, 64, 32),
    "M < BT": (5, 8, 2, 64, 32),
    "M in the second slot": (12, 8, 2, 64, 32),
    "M in the third slot": (27, 8, 2, 64, 32),
    "M of a split down product": (33, 8, 3, 32, 320),
    "units of an expert with a tail": (6, 8, 2, 32, 576),
    "M above concatenation": (70, 8, 2, 80, 48),
    "odd H and I": (6, 8, 2, 37, 19),
    "depths with a tail": (6, 8, 2, 200, 72),
    "prime E": (6, 13, 3, 48, 32),
    "prime E, in chunks": (65, 37, 3, 48, 32),
    "idle experts": (2, 64, 2, 48, 32),
    "one expert": (9, 1, 1, 48, 32),
    "K=1": (9, 8, 1, 48, 32),
    "K=E": (5, 4, 4, 48, 32),
}
TOLERANCES = {
    # Devices multiply float32 as TF32.
    torch.float32: {"rtol": 1e-5, "atol": 1e-5} if IS_INTERPRETED else {"rtol": 0, "atol": 1e-2},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


needs_tma = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0),
    reason="needs a tensor memory accelerator",
)


@dataclass(frozen=True)
class Case:
    hidden: Tensor
    w13: Tensor
    w2: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    first_expert: int = 0

    @property
    def schedule(self) -> Schedule:
        """With garbage wherever no reader may look."""
        schedule = build_schedule_reference(
            self.topk_ids, self.topk_weights, len(self.w13), first_expert=self.first_expert
        )
        num_active = int(schedule.num_active)
        for name in ("experts", "counts", "offsets"):
            getattr(schedule, name)[num_active:] = 1_000_003
        num_pairs = int((schedule.slots >= 0).sum())
        schedule.tokens[num_pairs:] = 1_000_003
        schedule.weights[num_pairs:] = NAN
        return schedule

    def workspace(self, poison: float = NAN) -> Workspace:
        num_rows, top_k = self.topk_ids.shape
        workspace = Workspace.allocate(
            self.w13, self.w2, max_rows=num_rows, top_k=top_k, dtype=self.hidden.dtype
        )
        workspace.inner.fill_(poison)
        workspace.sums.fill_(poison)
        return workspace

    def run(self, **options: Any) -> Tensor:
        options.setdefault("workspace", self.workspace())
        options.setdefault("out", torch.full_like(self.hidden, NAN))
        return fused_moe_triton(self.hidden, self.w13, self.w2, self.schedule, **options)

    def expected(self, **options: Any) -> Tensor:
        given = (self.hidden, self.w13, self.w2, self.topk_ids, self.topk_weights)
        return fused_moe_reference(*given, first_expert=self.first_expert, **options)

    def of_rank(self, held: range) -> Case:
        """The part of an expert-parallel rank."""
        part = slice(held.start, held.stop)
        return replace(self, w13=self.w13[part], w2=self.w2[part], first_expert=held.start)


def case_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
    num_rows, num_experts, top_k, hidden_size, inner_size = shape
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, hidden_size, generator=rng)
    w13 = torch.randn(num_experts, 2 * inner_size, hidden_size, generator=rng) / hidden_size**0.5
    w2 = torch.randn(num_experts, hidden_size, inner_size, generator=rng) / inner_size**0.5
    router = torch.randn(num_rows, num_experts, generator=rng).softmax(dim=1)
    weights, ids = router.topk(top_k, dim=1)
    tensors = (hidden.to(dtype), w13.to(dtype), w2.to(dtype), ids.int(), weights)
    return Case(*(tensor.to(DEVICE) for tensor in tensors))


def check(case: Case, **options: Any) -> None:
    got, expected = case.run(**options), case.expected(**options)
    torch.testing.assert_close(got, expected, **TOLERANCES[case.hidden.dtype])


@pytest.fixture(autouse=True)
def _wide_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies the bit patterns of bfloat16, and is slow at float16."""
    from triton.language import float32
    from triton.runtime.interpreter import InterpreterBuilder

    narrow_dot = InterpreterBuilder.create_dot

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return narrow_dot(self, self.cast_impl(a, float32), self.cast_impl(b, float32), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equal_to_reference(shape: tuple[int, ...]) -> None:
    check(case_of(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", ["M < BT", "M of a split down product", "prime E, in chunks"])
def test_half_precision_is_near_the_reference(name: str, dtype: torch.dtype) -> None:
    check(case_of(SHAPES[name], dtype))


@pytest.fixture
def _tma(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of the rules, their weights copied by the tensor memory accelerator."""
    by_rule = tuning.tiles_for
    monkeypatch.setattr(tuning, "tiles_for", lambda *key: replace(by_rule(*key), is_tma=True))


@needs_tma
@pytest.mark.usefixtures("_tma")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    "name",
    [
        "M < BT",
        "M in the third slot",
        "M of a split down product",
        "M above concatenation",
        "depths with a tail",
        "prime E, in chunks",
        "idle experts",
        "one expert",
    ],
)
def test_weights_by_tma_are_equal_to_reference(name: str, dtype: torch.dtype) -> None:
    check(case_of(SHAPES[name], dtype))


@needs_tma
@pytest.mark.usefixtures("_tma")
@pytest.mark.parametrize("num_rows", [3, 70])
def test_tma_stores_nothing_of_the_experts_next_to_a_tile(num_rows: int) -> None:
    """H and I end inside a block, whose other rows are of idle experts, all NaN."""
    case = case_of((num_rows, 9, 2, 48, 40))
    case = replace(case, topk_ids=case.topk_ids // 2 * 2)
    is_twice = case.topk_ids[:, 0] == case.topk_ids[:, 1]
    case = replace(case, topk_ids=case.topk_ids.masked_fill(is_twice[:, None], -1))
    expected = case.expected()
    case.w13[1::2], case.w2[1::2] = NAN, NAN
    torch.testing.assert_close(case.run(), expected, **TOLERANCES[torch.float32])


@pytest.mark.usefixtures("_tma")
def test_tma_has_no_alternating_rows() -> None:
    with pytest.raises(ValueError, match="is_interleaved: expected gate rows first"):
        case_of(SHAPES["M < BT"]).run(is_interleaved=True)


@pytest.mark.parametrize("num_rows", [3, 70])
@pytest.mark.parametrize("weighs_input", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_options(num_rows: int, weighs_input: bool, activation: str) -> None:
    case = case_of((num_rows, 5, 2, 33, 21))
    rng = torch.Generator().manual_seed(1)
    check(
        case,
        activation=activation,
        apply_router_weight_on_input=weighs_input,
        w13_bias=torch.randn(5, 42, generator=rng).to(DEVICE),
        w2_bias=torch.randn(5, 33, generator=rng).to(DEVICE),
    )


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_clamped_swiglu(is_interleaved: bool) -> None:
    case = case_of((3, 5, 2, 33, 21))
    case = replace(case, hidden=case.hidden * 8)  # some gates and ups beyond the limit
    options = {"activation": "swiglu_clamped", "is_interleaved": is_interleaved}
    got, expected = case.run(**options), case.expected(**options)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4 if IS_INTERPRETED else 0.1)


def check_fp8(num_rows: int, scaled: str, hidden_size: int = 160, inner_size: int = 192) -> None:
    case = case_of((num_rows, 3, 2, hidden_size, inner_size))
    options = {}
    for name in ("w13", "w2"):
        fp8 = getattr(case, name).mul(8).to(torch.float8_e4m3fn)
        blocks = (3, *(-(-size // 128) for size in fp8.shape[1:]))
        shape = {"block": blocks, "row": fp8.shape[:2], "expert": (3,)}[scaled]
        scale = torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5
        options[f"{name}_scale"] = scale.to(DEVICE)
        case = replace(case, **{name: fp8})
    case = replace(case, hidden=case.hidden.half() / 64)
    torch.testing.assert_close(case.run(**options), case.expected(**options), rtol=4e-3, atol=4e-3)


every_scale = pytest.mark.parametrize("scaled", ["block", "row", "expert"])


@pytest.mark.parametrize("num_rows", [3, 70])
@every_scale
def test_fp8_weights(num_rows: int, scaled: str) -> None:
    check_fp8(num_rows, scaled)


@pytest.mark.parametrize("num_rows", [3, 70])
def test_a_block_of_scales_may_be_as_wide_as_the_weights(num_rows: int) -> None:
    check_fp8(num_rows, "block", hidden_size=96, inner_size=80)


@needs_tma
@pytest.mark.usefixtures("_tma")
@pytest.mark.parametrize("num_rows", [3, 70])
@every_scale
def test_fp8_weights_by_tma(num_rows: int, scaled: str) -> None:
    check_fp8(num_rows, scaled)


@pytest.mark.parametrize("num_rows", [3, 40, 70])
@pytest.mark.parametrize("holes", ["some slots", "some rows", "all"])
def test_empty_slots(num_rows: int, holes: str) -> None:
    case = case_of((num_rows, 5, 2, 33, 21))
    is_empty = torch.zeros(num_rows, 2, dtype=torch.bool)
    is_empty[::2, 1] = True
    if holes != "some slots":
        is_empty[1:] = True
    if holes == "all":
        is_empty[:] = True
    case = replace(case, topk_ids=case.topk_ids.masked_fill(is_empty.to(DEVICE), -1))
    check(case)
    if holes == "all":
        assert (case.run() == 0).all()


@pytest.mark.parametrize("num_rows", [3, 40, 70])
def test_ranks_skip_remote_experts_and_sum_to_the_whole(num_rows: int) -> None:
    case = case_of((num_rows, 13, 3, 48, 32))
    ids = case.topk_ids.clone()
    ids[0], ids[1] = torch.tensor([10, 11, 12]), torch.tensor([11, -1, 12])
    case = replace(case, topk_ids=ids)
    total = torch.zeros_like(case.hidden)
    for held in (range(0, 5), range(5, 10), range(10, 13)):
        part = case.of_rank(held)
        check(part)
        got = part.run()
        is_local = (ids >= held.start) & (ids < held.stop)
        assert bool(is_local[0].any()) == (held.start == 10)
        assert (got[~is_local.any(dim=1)] == 0).all()
        total += got
    torch.testing.assert_close(total, case.expected(), **TOLERANCES[torch.float32])


@pytest.mark.parametrize("num_rows", [1, 40, 70])
def test_a_rank_whose_experts_no_row_wants_gives_zeros(num_rows: int) -> None:
    case = case_of((num_rows, 13, 3, 48, 32))
    case = replace(case, topk_ids=case.topk_ids.clamp(max=9)).of_rank(range(10, 13))
    assert (case.run() == 0).all()


@pytest.mark.parametrize("num_rows", [6, 70, 258])
@pytest.mark.parametrize("num_shared", [1, 2])
def test_selection_schedules_the_shared_experts_beside_the_routed_ones(
    num_rows: int, num_shared: int
) -> None:
    """As DeepSeek's: every row has each of them, in a slot of its own, whatever the budget."""
    num_routed, top_k = 12, 3
    case = case_of((num_rows, num_routed, top_k, 48, 32))
    wide = case_of((num_rows, num_routed + num_shared, top_k, 48, 32))
    shared = torch.arange(num_routed, num_routed + num_shared, dtype=torch.int32, device=DEVICE)
    scores = torch.zeros(num_rows, num_routed, device=DEVICE)
    scores.scatter_(1, case.topk_ids.long(), case.topk_weights)
    chosen = select_triton(
        scores,
        torch.cat([case.topk_ids, shared.expand(num_rows, -1)], dim=1),
        torch.cat([case.topk_weights, torch.ones_like(shared.expand(num_rows, -1)).float()], dim=1),
        torch.full((num_rows,), int(RowClass.FLEXIBLE), dtype=torch.uint8, device=DEVICE),
        budget=torch.tensor(4, dtype=torch.int32, device=DEVICE),
        floor=torch.tensor(0, dtype=torch.int32, device=DEVICE),
        demand=None,
        policy=POLICIES["lynx"],
        correction_bias=None,
        scheduled=range(num_routed + num_shared),
    )
    assert int(chosen.num_active) == 4
    assert int(chosen.schedule.num_active) == 4 + num_shared
    assert (chosen.topk_ids[:, top_k:] == shared).all()
    routed = replace(wide, topk_ids=chosen.topk_ids, topk_weights=chosen.topk_weights)
    workspace = routed.workspace()
    given = (wide.hidden, wide.w13, wide.w2, chosen.schedule)
    got = fused_moe_triton(*given, workspace=workspace)
    torch.testing.assert_close(got, routed.expected(), **TOLERANCES[torch.float32])


@pytest.mark.parametrize("num_rows", [3, 70])
def test_idle_experts_are_not_read(num_rows: int) -> None:
    """Times zero, a NaN would still show in the sums."""
    case = case_of((num_rows, 9, 2, 48, 32))
    case = replace(case, topk_ids=case.topk_ids % 5 * 2)
    rows_differ = case.topk_ids[:, 0] != case.topk_ids[:, 1]
    case = replace(case, topk_ids=torch.where(rows_differ[:, None], case.topk_ids, -1))
    expected = case.expected()
    is_idle = torch.ones(9, dtype=torch.bool, device=DEVICE)
    is_idle[case.topk_ids[case.topk_ids >= 0].long()] = False
    assert is_idle.any()
    case.w13[is_idle] = NAN
    case.w2[is_idle] = NAN
    torch.testing.assert_close(case.run(), expected, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("num_rows", [40, 70])
def test_one_live_expert_has_more_rows_than_a_tile(num_rows: int) -> None:
    case = case_of((num_rows, 37, 1, 48, 32))
    check(replace(case, topk_ids=torch.full_like(case.topk_ids, 36)))


@pytest.mark.parametrize("num_rows", [5, 33, 70])
def test_same_bits_whatever_scratch_held(num_rows: int) -> None:
    case = case_of((num_rows, 4, 3, 32, 192), torch.float16)
    workspace = case.workspace(poison=-7.0)
    first, second = (case.run(workspace=workspace) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, case.run())
    assert (workspace.arrivals == 0).all()


def test_a_larger_workspace_serves_smaller_batches() -> None:
    small = case_of((3, 4, 3, 32, 192))
    large = case_of((70, 4, 3, 32, 192))
    workspace = large.workspace()
    for case in (large, small, case_of((33, 4, 3, 32, 192))):
        case = replace(case, w13=large.w13, w2=large.w2)
        got = case.run(workspace=workspace)
        torch.testing.assert_close(got, case.expected(), **TOLERANCES[torch.float32])


def test_inputs_are_not_written() -> None:
    case, untouched = case_of(SHAPES["M < BT"]), case_of(SHAPES["M < BT"])
    schedule = case.schedule
    case.run()
    for given, copy in ((case, untouched), (schedule, untouched.schedule)):
        for name in given.__dataclass_fields__:
            torch.testing.assert_close(
                getattr(given, name), getattr(copy, name), rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hidden", {"hidden": torch.rand(5, 63)}),
        ("hidden", {"hidden": torch.rand(5, 64).half()}),
        ("hidden", {"hidden": torch.rand(64, 5).T}),
        ("w13", {"w13": torch.rand(8, 63, 64)}),
        ("w2", {"w2": torch.rand(8, 64, 32).half()}),
        ("workspace", {"topk_ids": torch.zeros(6, 2).int(), "topk_weights": torch.rand(6, 2)}),
    ],
)
def test_bad_arguments_are_named(name: str, changes: dict[str, Any]) -> None:
    case = case_of(SHAPES["M < BT"])
    workspace = case.workspace()
    changed = replace(case, **{key: value.to(DEVICE) for key, value in changes.items()})
    with pytest.raises(ValueError, match=rf"{name}: expected .* got"):
        changed.run(workspace=workspace)


def test_an_unknown_activation_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"silu, gelu, swiglu_clamped; got 'relu'"):
        case_of(SHAPES["M=1"]).run(activation="relu")
