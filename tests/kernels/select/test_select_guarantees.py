"""The six guarantees of `select`, for every policy and kind of router.

A case follows from a seed, so an example costs little and thousands run in seconds.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_kernels import POLICIES, Policy, RowClass, Selection, select, select_reference
from lynx_kernels.select.torch_form import select_torch
from tests.kernels.cases import Case, random_case

SEEDS = st.integers(0, 2**32 - 1)
# Constants that the named policies leave at their defaults.
OTHERS = (
    replace(POLICIES["lynx-v1"], name="lynx-v1, confident rows", confidence=0.6),
    replace(POLICIES["lynx-v3"], name="lynx-v3, one bin", num_bins=1, confidence=0.5),
    replace(POLICIES["sere"], name="sere, alike only", min_similarity=0.5),
)
tested = (*POLICIES.values(), *OTHERS)
every_policy = pytest.mark.parametrize("policy", tested, ids=lambda policy: policy.name)
bounded_policy = pytest.mark.parametrize(
    "policy", [each for each in tested if each.name != "full"], ids=lambda policy: policy.name
)
examples = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def assert_same(got: Selection, expected: Selection) -> None:
    assert torch.equal(got.topk_ids, expected.topk_ids)
    assert got.topk_ids.dtype == expected.topk_ids.dtype
    assert torch.equal(got.active, expected.active)
    assert torch.equal(got.num_active, expected.num_active)
    torch.testing.assert_close(got.topk_weights, expected.topk_weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got.retained_mass, expected.retained_mass, rtol=1e-6, atol=0)


def floor_of(case: Case, row: int, policy: Policy, *, slack: float = 1e-9) -> set[int]:
    """Experts that the policy protects of a flexible row: none of a row that is not confident.

    A confidence within `slack` of the policy's may round either way: it counts as none, or, with
    a negative slack, as enough.
    """
    experts = floor_experts(case, row)
    pairs = zip(case.topk_ids[row].tolist(), case.topk_weights[row].tolist(), strict=True)
    mass = [max(w, 0.0) for e, w in pairs if 0 <= e < case.num_experts]
    is_sure = max(mass, default=0.0) * (1 - slack) >= policy.confidence * sum(mass)
    return set(experts) if is_sure else set()


def own_experts(case: Case, row: int) -> list[int]:
    return [e for e in case.topk_ids[row].tolist() if 0 <= e < case.num_experts]


def floor_experts(case: Case, row: int) -> list[int]:
    pairs = zip(case.topk_ids[row].tolist(), case.topk_weights[row].tolist(), strict=True)
    own = [(e, w) for e, w in pairs if 0 <= e < case.num_experts]
    own.sort(key=lambda pair: -pair[1])
    return [e for e, _ in own[: max(int(case.floor), 0)]]


@every_policy
@settings(examples, max_examples=700)
@given(seed=SEEDS)
def test_both_paths_equal_the_reference(policy: Policy, seed: int) -> None:
    arguments = random_case(seed).arguments()
    expected = select_reference(**arguments, policy=policy)
    assert_same(select(**arguments, policy=policy), expected)
    assert_same(select_torch(**arguments, policy=policy), expected)


@settings(examples, max_examples=700)
@given(seed=SEEDS)
def test_contributions_weigh_alike_on_every_path(seed: int) -> None:
    case = random_case(seed)
    random = torch.Generator().manual_seed(seed)
    contribution = 1.2 * torch.rand(case.num_experts, generator=random)  # above 1 counts as 1
    contribution[:: 1 + seed % 5] = float("nan") if seed % 2 else -1.0
    arguments = case.arguments() | {"contribution": contribution}
    expected = select_reference(**arguments)
    assert_same(select(**arguments), expected)
    assert_same(
        select_torch(**arguments, policy=POLICIES["lynx"]),
        expected,
    )
    whole = case.arguments() | {"contribution": torch.ones(case.num_experts)}
    assert_same(select_reference(**whole), select_reference(**case.arguments()))


@every_policy
@examples
@given(seed=SEEDS)
def test_full_budget_and_demand_change_no_bit(policy: Policy, seed: int) -> None:
    case = random_case(seed)
    case = case.with_controls(1.0, None, 1.0)
    is_live = case.row_class != RowClass.PAD
    for got in (
        select(**case.arguments(), policy=policy),
        select_torch(**case.arguments(), policy=policy),
    ):
        assert torch.equal(got.topk_ids[is_live], case.topk_ids[is_live])
        assert torch.equal(got.topk_weights[is_live], case.topk_weights[is_live])
        assert torch.equal(got.retained_mass, torch.ones(len(is_live)))


@every_policy
@examples
@given(seed=SEEDS)
def test_pads_come_out_empty_and_exact_rows_untouched(policy: Policy, seed: int) -> None:
    case = random_case(seed)
    got = select(**case.arguments(), policy=policy)
    is_pad, is_exact = (case.row_class == kind for kind in (RowClass.PAD, RowClass.EXACT))
    assert (got.topk_ids[is_pad] == -1).all()
    assert (got.topk_weights[is_pad] == 0).all()
    assert torch.equal(got.topk_ids[is_exact], case.topk_ids[is_exact])
    assert torch.equal(got.topk_weights[is_exact], case.topk_weights[is_exact])
    assert (got.retained_mass[is_pad | is_exact] == 1).all()


@every_policy
@examples
@given(seed=SEEDS)
def test_flexible_rows_keep_floor_and_every_active_own_expert(policy: Policy, seed: int) -> None:
    case = random_case(seed)
    got = select(**case.arguments(), policy=policy)
    active = set(got.active.nonzero().flatten().tolist())
    assert len(active) == int(got.num_active)
    used: set[int] = set()
    for row, kind in enumerate(case.row_class.tolist()):
        after = [e for e in got.topk_ids[row].tolist() if 0 <= e < case.num_experts]
        used.update(after)
        assert len(after) == len(set(after))
        if kind != RowClass.FLEXIBLE:
            continue
        own = own_experts(case, row)
        assert floor_of(case, row, policy) <= set(after)
        assert set(own) & active <= set(after)
        if set(own) <= active:
            assert torch.equal(got.topk_weights[row], case.topk_weights[row])
        for slot, expert in enumerate(case.topk_ids[row].tolist()):
            is_routed = 0 <= expert < case.num_experts
            if not is_routed or expert in after:  # stays in its slot
                assert got.topk_ids[row, slot] == expert
            if not is_routed:
                assert got.topk_weights[row, slot] == case.topk_weights[row, slot]
    assert used == active


@bounded_policy
@examples
@given(seed=SEEDS)
def test_active_experts_stay_within_budget_or_protected_set(policy: Policy, seed: int) -> None:
    case = random_case(seed)
    protected: set[int] = set()
    for row, kind in enumerate(case.row_class.tolist()):
        if kind == RowClass.EXACT:
            protected.update(own_experts(case, row))
        elif kind == RowClass.FLEXIBLE:
            protected.update(floor_of(case, row, policy, slack=-1e-9))
    got = select(**case.arguments(), policy=policy)
    assert int(got.num_active) <= max(int(case.budget), len(protected))


@every_policy
@examples
@given(seed=SEEDS)
def test_permuting_rows_permutes_the_output(policy: Policy, seed: int) -> None:
    case = random_case(seed)
    order = torch.randperm(len(case.row_class), generator=torch.Generator().manual_seed(seed))
    got = select(**case.with_rows(order).arguments(), policy=policy)
    expected = select(**case.arguments(), policy=policy)
    for name in ("topk_ids", "topk_weights", "retained_mass"):
        assert torch.equal(getattr(got, name), getattr(expected, name)[order])
    assert torch.equal(got.active, expected.active)


@every_policy
@examples
@given(seed=SEEDS)
def test_inputs_are_not_written(policy: Policy, seed: int) -> None:
    case, untouched = random_case(seed), random_case(seed).arguments()
    select(**case.arguments(), policy=policy)
    for name, value in case.arguments().items():
        assert value is untouched[name] is None or torch.equal(value, untouched[name])


@every_policy
@examples
@given(seed=SEEDS, poison=st.sampled_from([float("nan"), float("inf"), -float("inf"), -1.0]))
def test_a_poisoned_row_acts_as_zeros_for_the_others(
    policy: Policy, seed: int, poison: float
) -> None:
    bad, zero = random_case(seed), random_case(seed)
    if not len(bad.row_class):
        return
    for case, value in ((bad, poison), (zero, 0.0)):
        case.scores[0] = value
        case.topk_weights[0] = value
    got, expected = (select(**case.arguments(), policy=policy) for case in (bad, zero))
    assert torch.equal(got.topk_ids, expected.topk_ids)
    assert torch.equal(got.topk_weights[1:], expected.topk_weights[1:])
    assert torch.equal(got.retained_mass, expected.retained_mass)
    on_device = select_torch(**bad.arguments(), policy=policy)
    assert torch.equal(on_device.topk_ids, expected.topk_ids)
    assert torch.equal(on_device.topk_weights[1:], expected.topk_weights[1:])
