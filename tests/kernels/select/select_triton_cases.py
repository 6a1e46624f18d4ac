"""`select_triton` against the reference: under Triton's interpreter, or on a GPU.

Run by test_select_triton.py in a process of its own, since Triton reads TRITON_INTERPRET once,
when it is first imported. On a GPU: python -m pytest tests/kernels/select/select_triton_cases.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from lynx_kernels.schedule import Schedule, build_schedule_reference
from lynx_kernels.select import (
    POLICIES,
    LayerBuffers,
    RowClass,
    SelectBuffers,
    Selection,
    build_schedule,
    policies_for_triton,
    select_reference,
    select_triton,
    triton_form,
)
from tests.kernels.cases import Case, Controls, softmax_case

IS_INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
NAN, INF = float("nan"), float("inf")

pytestmark = pytest.mark.skipif(
    not IS_INTERPRETED and not torch.cuda.is_available(), reason="needs TRITON_INTERPRET=1 or a GPU"
)
# Policies that the kernels cannot tell apart (lynx-v1, oea) are tested once.
every_policy = pytest.mark.parametrize(
    "policy",
    {POLICIES[name].rules: name for name in policies_for_triton()}.values(),
)

# (M, E, K). A program decides for at most 64 rows of 128 experts, 32 of 256, 16 of 512.
SHAPES = {
    "M=1": (1, 16, 4),
    "M below a program's rows": (5, 16, 4),
    "M above a program's rows": (70, 16, 3),
    "several programs, the last one partly empty": (40, 200, 6),
    "prime E": (9, 13, 3),
    "E above a block of 128": (6, 130, 4),
    "idle experts": (2, 64, 2),
    "one expert": (6, 1, 1),
    "K=1": (9, 8, 1),
    "K=E": (5, 4, 4),
    "K of no power of two": (7, 20, 5),
    "K=16": (3, 24, 16),
    "three launches": (258, 16, 2),
}
# (budget as a share of E, floor, demand)
CONTROLS = {
    "cap binds": (0.4, 1, 1.0),
    "demand binds": (1.0, 1, 0.5),
    "both bind": (0.5, 2, 0.7),
    "floors over the budget": (0.0, 2, 0.3),
}


def make_buffers(case: Case, **given: Any) -> SelectBuffers:
    """Buffers that hold what no result can be, with room for three more rows."""
    num_rows, top_k = case.topk_ids.shape
    buffers = SelectBuffers.allocate(
        max_rows=num_rows + 3,
        top_k=top_k,
        num_experts=case.num_experts,
        ids_dtype=case.topk_ids.dtype,
        device=DEVICE,
        **given,
    )
    poison(buffers)
    return buffers


def poison(buffers: SelectBuffers) -> None:
    buffers.ids.fill_(-99)
    buffers.weights.fill_(NAN)
    buffers.active.fill_(7)
    buffers.numbers.fill_(-99)
    buffers.scratch[0, 1 : buffers.layout.shared_counters].fill_(-1)


def run(case: Case, policy: str, buffers: SelectBuffers | None = None) -> Selection:
    return select_triton(
        **case.arguments(DEVICE),
        policy=POLICIES[policy],
        scheduled=range(case.num_experts),
        out=buffers,
    )


def check(case: Case, policy: str, buffers: SelectBuffers | None = None) -> Selection:
    """Compare all results of `select_triton` with the references."""
    got = run(case, policy, buffers)
    expected = select_reference(**case.arguments(), policy=policy)
    for name in ("topk_ids", "active", "num_active"):
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name)), name
    weights, retained = got.topk_weights.cpu(), got.retained_mass.cpu()
    torch.testing.assert_close(weights, expected.topk_weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(retained, expected.retained_mass, rtol=1e-6, atol=0)
    assert got.schedule is not None
    num_scheduled = case.num_experts if buffers is None else buffers.layout.num_scheduled
    first_expert = 0 if buffers is None else buffers.layout.first_expert
    check_schedule(
        got.schedule,
        build_schedule_reference(
            expected.topk_ids, weights, num_scheduled, first_expert=first_expert
        ),
    )
    return got


def check_schedule(got: Schedule, expected: Schedule) -> None:
    """Equal where a reader may look."""
    num_active = int(expected.num_active)
    num_rows = int(expected.counts[:num_active].sum())
    assert torch.equal(got.num_active.cpu(), expected.num_active)
    assert torch.equal(got.slots.cpu(), expected.slots)
    for name, length in (
        ("experts", num_active),
        ("counts", num_active),
        ("offsets", num_active),
        ("tokens", num_rows),
        ("weights", num_rows),
    ):
        assert torch.equal(getattr(got, name)[:length].cpu(), getattr(expected, name)[:length])


@every_policy
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape(policy: str, shape: tuple[int, ...]) -> None:
    case = softmax_case(*shape, CONTROLS["both bind"])
    check(case, policy, make_buffers(case, num_scheduled=shape[1]))


@every_policy
@pytest.mark.parametrize("controls", CONTROLS.values(), ids=CONTROLS)
def test_every_control(policy: str, controls: Controls) -> None:
    check(softmax_case(12, 24, 4, controls), policy)


@every_policy
@pytest.mark.parametrize("demand", [None, 0.0, 1.0, 7.0, -1.0, NAN])
def test_demand_at_and_beyond_its_ends(policy: str, demand: float | None) -> None:
    check(softmax_case(6, 12, 3, (0.5, 1, demand)), policy)


@every_policy
def test_full_budget_and_demand_change_no_bit(policy: str) -> None:
    case = softmax_case(12, 24, 4, (1.0, 1, 1.0))
    got = run(case, policy)
    is_live = case.row_class != RowClass.PAD
    assert torch.equal(got.topk_ids.cpu()[is_live], case.topk_ids[is_live])
    assert torch.equal(got.topk_weights.cpu()[is_live], case.topk_weights[is_live])
    assert torch.equal(got.retained_mass.cpu(), torch.ones(12))


@every_policy
@pytest.mark.parametrize("kind", list(RowClass))
def test_rows_of_one_class(policy: str, kind: RowClass) -> None:
    case = softmax_case(8, 12, 3, CONTROLS["both bind"])
    check(replace(case, row_class=torch.full((8,), kind, dtype=torch.uint8)), policy)


@every_policy
def test_no_rows(policy: str) -> None:
    case = softmax_case(2, 12, 3, CONTROLS["both bind"]).with_rows(torch.arange(0))
    check(case, policy)


@every_policy
def test_ties_go_to_the_lower_expert(policy: str) -> None:
    case = softmax_case(12, 24, 4, CONTROLS["both bind"])
    scores = (8 * case.scores).round() / 8
    weights, ids = scores.topk(4, dim=1)
    check(replace(case, scores=scores, topk_weights=weights, topk_ids=ids.int()), policy)


@every_policy
def test_scores_and_weights_that_are_no_mass(policy: str) -> None:
    case = softmax_case(12, 24, 4, CONTROLS["both bind"])
    scores, weights = case.scores.clone(), case.topk_weights.clone()
    for row, value in enumerate((NAN, INF, -INF, -1.0, 0.0)):
        scores[row, ::2] = value
        weights[row, :2] = value
    weights[5] = 0.0
    case = replace(case, scores=scores, topk_weights=weights)
    got = run(case, policy)
    expected = select_reference(**case.arguments(), policy=policy)
    assert torch.equal(got.topk_ids.cpu(), expected.topk_ids)
    assert torch.equal(got.topk_weights.cpu()[6:], expected.topk_weights[6:])
    torch.testing.assert_close(got.retained_mass.cpu(), expected.retained_mass, rtol=1e-6, atol=0)


@every_policy
def test_empty_slots_and_shared_experts_pass_through(policy: str) -> None:
    case = softmax_case(12, 24, 5, CONTROLS["both bind"])
    ids, weights = case.topk_ids.clone(), case.topk_weights.clone()
    ids[:, 1], weights[:, 1] = 24, 1.0
    ids[::3, 2] = -1
    case = replace(case, topk_ids=ids, topk_weights=weights)
    got = check(case, policy, make_buffers(case, num_scheduled=25))
    assert got.schedule is not None
    assert got.schedule.experts[got.schedule.num_active.item() - 1] == 24
    check(case, policy)  # a schedule of the routed experts alone


@pytest.mark.parametrize("num_experts", [128, 130, 300, 512])
@pytest.mark.parametrize("budget", [0.05, 0.3, 0.9])
def test_winners_among_many_experts(num_experts: int, budget: float) -> None:
    """Above 128 experts a threshold is found instead of every rank; ties go to the lower id."""
    case = softmax_case(24, num_experts, 8, (budget, 0, 1.0))
    check(case, "lynx")
    quarters = (16 * case.scores.sqrt()).round() / 16
    weights, ids = quarters.topk(8, dim=1)
    ties = replace(case, scores=quarters, topk_weights=weights, topk_ids=ids.int())
    for policy in ("lynx", "xshare"):  # importance from almost none up, and of every expert
        check(ties, policy)
    check(replace(ties, topk_weights=torch.zeros_like(weights)), "lynx")


# (M, E, K): what a server selects in above 256 rows, without a schedule.
LARGE = [(257, 512, 10), (300, 128, 8), (512, 256, 4), (1000, 8, 2)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_batches(shape: tuple[int, ...]) -> None:
    case = softmax_case(*shape, (0.3, 1, 1.0))
    buffers = make_buffers(case)
    for controls in ((0.3, 1, 1.0), (0.5, 2, 0.7)):  # each on what the last one left
        check_alone(case.with_controls(*controls), buffers)
    few = case.with_rows(torch.arange(shape[0]) % 3 == 0)  # in one launch, with the same buffers
    check_alone(few.with_controls(0.3, 1, 1.0), buffers)


def check_alone(case: Case, buffers: SelectBuffers) -> None:
    """A selection without a schedule against the reference, and the contract by itself."""
    got = select_triton(**case.arguments(DEVICE), policy=POLICIES["lynx"], out=buffers)
    expected = select_reference(**case.arguments(), policy="lynx")
    for name in ("topk_ids", "active", "num_active"):
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name)), name
    torch.testing.assert_close(got.topk_weights.cpu(), expected.topk_weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got.retained_mass.cpu(), expected.retained_mass, rtol=1e-6, atol=0)
    ids, exact = got.topk_ids.cpu(), case.row_class == RowClass.EXACT
    assert torch.equal(ids[exact], case.topk_ids[exact])
    assert torch.equal(got.topk_weights.cpu()[exact], case.topk_weights[exact])
    assert (ids[case.row_class == RowClass.PAD] == -1).all()
    flexible = case.row_class == RowClass.FLEXIBLE
    own = case.topk_weights.argsort(dim=1, descending=True, stable=True)[:, : int(case.floor)]
    floors = case.topk_ids.gather(1, own)[flexible]
    protected = torch.cat([floors.flatten(), case.topk_ids[exact].flatten()]).unique().numel()
    assert int(got.num_active) == ids[ids >= 0].unique().numel()
    assert int(got.num_active) <= max(int(case.budget), protected)
    assert (floors[:, :, None] == ids[flexible][:, None, :]).any(dim=2).all()


def test_buffers_of_two_sizes_show_a_layers_t_and_mass_at_one_address() -> None:
    small, large = softmax_case(6, 24, 4, (0.4, 1, 1.0)), softmax_case(258, 24, 4, (0.4, 1, 1.0))
    sizes = {"top_k": 4, "num_experts": 24, "device": DEVICE}
    layers = LayerBuffers.of(
        2,
        SelectBuffers.allocate(max_rows=8, num_scheduled=24, **sizes),
        SelectBuffers.allocate(max_rows=300, **sizes),
    )
    for kind, case in enumerate((small, large, small)):
        for layer in (0, 1):
            got = run(case, "lynx", layers.layers[layer][kind % 2])
            num_rows = len(case.row_class)
            assert layers.num_active[layer] == got.num_active
            assert torch.equal(layers.retained_mass[layer, :num_rows], got.retained_mass)
            assert (got.schedule is None) == (case is large)


@every_policy
def test_refills_follow_the_correction_bias(policy: str) -> None:
    case = softmax_case(12, 24, 4, CONTROLS["cap binds"])
    bias = torch.randn(24, generator=torch.Generator().manual_seed(0))
    check(replace(case, correction_bias=bias, scores=case.scores.sqrt()), policy)


@pytest.mark.parametrize("num_rows", [12, 70, 258])
def test_contributions_weigh_importance(num_rows: int) -> None:
    case = softmax_case(num_rows, 24, 4, (0.4, 0, 1.0))
    # No floors and no exact rows: importance decides alone.
    case = replace(case, row_class=torch.full((num_rows,), RowClass.FLEXIBLE, dtype=torch.uint8))
    before = run(case, "lynx").active.cpu().clone()
    random = torch.Generator().manual_seed(num_rows)
    contribution = torch.where(before, 1e-3 * torch.rand(24, generator=random), 1.0)
    contribution[~before] = torch.tensor(NAN)  # counts as 1
    got = check(replace(case, contribution=contribution), "lynx")
    assert not torch.equal(got.active.cpu(), before)


@pytest.mark.parametrize("num_rows", [12, 70, 258])
def test_ids_of_64_bits(num_rows: int) -> None:
    case = softmax_case(num_rows, 24, 4, CONTROLS["both bind"])
    check(replace(case, topk_ids=case.topk_ids.long()), "lynx")


@pytest.mark.parametrize("num_rows", [12, 70, 258])
def test_a_local_range_of_experts(num_rows: int) -> None:
    case = softmax_case(num_rows, 24, 4, CONTROLS["both bind"])
    check(case, "lynx", make_buffers(case, num_scheduled=7, first_expert=13))


@pytest.mark.parametrize("num_rows", [12, 70, 258])
def test_a_local_range_that_no_row_wants(num_rows: int) -> None:
    case = softmax_case(num_rows, 24, 4, CONTROLS["both bind"])
    scores, ids = case.scores.clone(), case.topk_ids % 20
    scores[:, 20:] = 0.0
    is_distinct = (ids[:, :, None] == ids[:, None, :]).sum(dim=(1, 2)) == 4
    case = replace(case, scores=scores, topk_ids=ids).with_rows(is_distinct)
    got = check(case, "lynx", make_buffers(case, num_scheduled=4, first_expert=20))
    assert got.schedule is not None
    assert got.schedule.num_active.tolist() == [0]


@pytest.mark.parametrize("num_rows", [12, 70, 258])
def test_without_a_schedule(num_rows: int) -> None:
    case = softmax_case(num_rows, 24, 4, CONTROLS["both bind"])
    got = select_triton(**case.arguments(DEVICE), policy=POLICIES["lynx"])
    assert got.schedule is None
    assert torch.equal(got.active.cpu(), run(case, "lynx").active.cpu())


@pytest.mark.parametrize("num_rows", [0, 12, 70, 258])
@pytest.mark.parametrize("first_expert", [0, 13])
def test_schedule_of_any_routing(num_rows: int, first_expert: int) -> None:
    rng = torch.Generator().manual_seed(num_rows)
    weights, ids = torch.rand(num_rows, 24, generator=rng).topk(4, dim=1)
    ids = ids.masked_fill(weights < 0.85, -1)
    got = build_schedule(ids.to(DEVICE), weights.to(DEVICE), 11, first_expert=first_expert)
    check_schedule(got, build_schedule_reference(ids, weights, 11, first_expert=first_expert))


@every_policy
@pytest.mark.parametrize("num_rows", [12, 70])
def test_permuting_rows_permutes_the_output(policy: str, num_rows: int) -> None:
    case = softmax_case(num_rows, 24, 4, CONTROLS["both bind"])
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))
    got, expected = run(case.with_rows(order), policy), run(case, policy)
    for name in ("topk_ids", "topk_weights", "retained_mass"):
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name).cpu()[order])
    assert torch.equal(got.active, expected.active)


@pytest.mark.parametrize("num_rows", [12, 70, 258])
def test_buffers_serve_launch_after_launch(num_rows: int) -> None:
    """As in a captured graph: same addresses, changed controls, whatever the last launch left."""
    case = softmax_case(num_rows, 24, 4, CONTROLS["both bind"])
    buffers = make_buffers(case, num_scheduled=24)
    for controls in CONTROLS.values():
        check(case.with_controls(*controls), "lynx", buffers)
        assert buffers.scratch[0, 0] == 0
        assert (buffers.scratch[0, buffers.layout.shared_counters :] == 0).all()
    assert (buffers.ids[num_rows:] == -99).all()
    assert buffers.weights[num_rows:].isnan().all()
    poison(buffers)
    check(case, "lynx", buffers)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scores", lambda t: t.T.contiguous().T),
        ("scores", lambda t: t[:, :-1].contiguous()),
        ("topk_ids", lambda t: t.long()),
        ("topk_ids", lambda t: t[:, :-1].contiguous()),
        ("topk_ids", lambda t: t.repeat(2, 1)),
    ],
)
def test_what_does_not_fit_the_buffers_is_named(
    name: str, change: Callable[[Tensor], Tensor]
) -> None:
    case = softmax_case(6, 12, 3, CONTROLS["both bind"])
    buffers = make_buffers(case)
    with pytest.raises(ValueError, match=f"{name}: expected.*got"):
        run(replace(case, **{name: change(getattr(case, name))}), "lynx", buffers)


@pytest.mark.parametrize("policy", ["lynx", "xshare", "topk"])  # refills, sums of scores, neither
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("num_rows", [9, 70, 258])
def test_logits_are_scored_inside(
    policy: str, dtype: torch.dtype, scoring: str, num_rows: int
) -> None:
    case = softmax_case(num_rows, 13, 3, CONTROLS["both bind"])
    logits = case.scores.log().to(dtype)
    logits[::4, 5] = -INF  # an expert that a router rules out
    scores = logits.float().softmax(-1) if scoring == "softmax" else logits.float().sigmoid()
    weights, ids = scores.topk(3, dim=1)
    case = replace(case, scores=scores, topk_ids=ids.int(), topk_weights=weights)
    expected = select_reference(**case.arguments(), policy=policy)
    given = case.arguments(DEVICE) | {"scores": logits.to(DEVICE)}
    got = select_triton(**given, policy=POLICIES[policy], scoring=scoring)
    assert torch.equal(got.topk_ids.cpu(), expected.topk_ids)
    assert torch.equal(got.active.cpu(), expected.active)
    weights = got.topk_weights.cpu()
    torch.testing.assert_close(weights, expected.topk_weights, rtol=2e-6, atol=1e-9)


def test_an_unknown_scoring_is_refused() -> None:
    case = softmax_case(6, 12, 3, CONTROLS["both bind"])
    with pytest.raises(ValueError, match="scoring: expected one of none, softmax, sigmoid; got"):
        select_triton(**case.arguments(DEVICE), policy=POLICIES["lynx"], scoring="cosine")


REFUSED = sorted(POLICIES.keys() - policies_for_triton())


def test_policies_for_comparison_are_refused_with_those_that_are_served() -> None:
    case = softmax_case(6, 12, 3, CONTROLS["both bind"])
    assert REFUSED == ["lynx-v3", "random", "sere"]
    for name in REFUSED:
        with pytest.raises(ValueError, match=rf"policy: expected .*lynx, full.* got {name}$"):
            run(case, name)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("num_rows", [6, 258])
def test_a_kernel_does_not_take_a_policy_for_another(
    monkeypatch: pytest.MonkeyPatch, name: str, num_rows: int
) -> None:
    """Behind the host's check: what a kernel has no branch for is no kernel."""
    monkeypatch.setattr(triton_form, "check_policy", lambda policy: None)
    case = softmax_case(num_rows, 12, 3, CONTROLS["both bind"])
    with pytest.raises(TritonError, match="no kernel for"):
        run(case, name)


@pytest.mark.skipif(IS_INTERPRETED, reason="needs a GPU")
@every_policy
@pytest.mark.parametrize("num_rows", [1, 8, 64, 70, 256, 258])
def test_a_captured_graph_follows_the_controls(policy: str, num_rows: int) -> None:
    case = softmax_case(num_rows, 128, 8, CONTROLS["both bind"])
    buffers = make_buffers(case, num_scheduled=128)
    given = case.arguments(DEVICE)
    select_triton(**given, policy=POLICIES[policy], out=buffers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        select_triton(**given, policy=POLICIES[policy], out=buffers)
    for controls in CONTROLS.values():
        changed = case.with_controls(*controls)
        for name in ("budget", "floor", "demand"):
            given[name].copy_(getattr(changed, name))
        expected = run(changed, policy)
        poison(buffers)
        graph.replay()
        first = buffers.numbers.clone()
        got = buffers.view(num_rows)
        for name in ("topk_ids", "topk_weights", "active", "num_active", "retained_mass"):
            assert torch.equal(getattr(got, name), getattr(expected, name)), name
        poison(buffers)
        graph.replay()
        assert torch.equal(buffers.numbers, first)  # equal inputs, equal bits
