"""Selection on a GPU: the host side; one launch up to MAX_FUSED_ROWS rows, above these two, and a
third where there is a schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lynx_kernels.device import arch_of, has_pdl
from lynx_kernels.select.layout import SelectTiles, power_of_2
from lynx_kernels.select.limits import MAX_FUSED_ROWS, SCORINGS
from lynx_kernels.select.policies import Policy, policies_for_triton
from lynx_kernels.select.selection import Selection
from lynx_kernels.select.triton_buffers import SelectBuffers
from lynx_kernels.select.triton_kernels import (
    decide_kernel,
    demand_kernel,
    place_kernel,
    select_kernel,
)

REGISTERS = 64 * 1024  # of an SM


@dataclass(frozen=True, slots=True)
class SelectInputs:
    """Tensors that the kernels read, by the names of `select`."""

    scores: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    row_class: Tensor
    budget: Tensor
    floor: Tensor
    demand: Tensor | None
    correction_bias: Tensor | None
    contribution: Tensor | None
    scoring: str


def select_triton(
    scores: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_class: Tensor,
    *,
    budget: Tensor,
    floor: Tensor,
    demand: Tensor | None,
    policy: Policy,
    correction_bias: Tensor | None,
    contribution: Tensor | None = None,
    scoring: str = "none",
    scheduled: range | None = None,
    out: SelectBuffers | None = None,
) -> Selection:
    """`select` on a GPU, with the same results. Nothing waits for the device.

    A captured graph follows budget, floor and demand. The inputs are contiguous and not in `out`.

    Args:
        scores: float32 [M, E], or logits of any float dtype where `scoring` says so.
        scoring: "softmax" or "sigmoid" of `scores`, worked out where the budget binds; "none".
        scheduled: ids of the experts in w13: the work list over them is returned too. Where `out`
            is given, its own sizes say whether, and over which experts.
        out: buffers of results and scratch; allocated where not given.

    Raises:
        ValueError: a policy or a scoring without a Triton form, or a tensor that does not fit the
            buffers.
    """
    num_rows, num_experts = scores.shape
    top_k = topk_ids.shape[1]
    if out is None:
        out = SelectBuffers.allocate(
            max_rows=power_of_2(num_rows),  # a kernel is compiled for it
            top_k=top_k,
            num_experts=num_experts,
            num_scheduled=len(scheduled or ()),
            first_expert=scheduled.start if scheduled else 0,
            ids_dtype=topk_ids.dtype,
            device=scores.device,
        )
    given = SelectInputs(
        scores,
        topk_ids,
        topk_weights,
        row_class,
        budget,
        floor,
        demand,
        correction_bias,
        contribution,
        scoring,
    )
    check_policy(policy)
    if scoring not in SCORINGS:
        raise ValueError(f"scoring: expected one of {', '.join(SCORINGS)}; got {scoring!r}")
    check_inputs(given, out)

    tiles = SelectTiles.of(num_rows, num_experts, top_k)

    launch = launch_fused if num_rows <= MAX_FUSED_ROWS else launch_several
    launch(tiles, given, policy, out, has_pdl(arch_of(scores.device)))
    return out.view(num_rows)


def launch_fused(
    tiles: SelectTiles, given: SelectInputs, policy: Policy, out: SelectBuffers, is_pdl: bool
) -> None:
    select_kernel[(tiles.num_programs,)](
        scores_ptr=given.scores,
        bias_ptr=given.correction_bias,
        ids_ptr=given.topk_ids,
        weights_ptr=given.topk_weights,
        row_class_ptr=given.row_class,
        contribution_ptr=given.contribution,
        budget_ptr=given.budget,
        floor_ptr=given.floor,
        demand_ptr=given.demand,
        out_ids_ptr=out.ids,
        out_weights_ptr=out.weights,
        active_ptr=out.active,
        numbers_ptr=out.numbers,
        scratch_ptr=out.scratch,
        num_rows=given.scores.shape[0],
        LAYOUT=out.layout,
        POLICY=policy.rules,
        SCORING=given.scoring,
        BLOCK_M=tiles.rows,
        BLOCK_R=tiles.demand_rows,
        BLOCK_T=tiles.scheduled_rows,
        NUM_PROGRAMS=tiles.num_programs,
        HAS_PDL=is_pdl,
        num_warps=tiles.num_warps,
        maxnreg=min(255, REGISTERS // (32 * tiles.num_warps)),  # few programs: none has to share
        launch_pdl=is_pdl,
    )


def launch_several(
    tiles: SelectTiles, given: SelectInputs, policy: Policy, out: SelectBuffers, is_pdl: bool
) -> None:
    grid, num_rows = (tiles.num_programs,), given.scores.shape[0]
    demand_kernel[grid](
        scores_ptr=given.scores,
        ids_ptr=given.topk_ids,
        weights_ptr=given.topk_weights,
        row_class_ptr=given.row_class,
        contribution_ptr=given.contribution,
        budget_ptr=given.budget,
        floor_ptr=given.floor,
        demand_ptr=given.demand,
        scratch_ptr=out.scratch,
        num_rows=num_rows,
        LAYOUT=out.layout,
        POLICY=policy.rules,
        SCORING=given.scoring,
        BLOCK_M=tiles.rows,
        BLOCK_R=min(tiles.rows, tiles.demand_rows),
        HAS_PDL=is_pdl,
        num_warps=tiles.num_warps,
        launch_pdl=is_pdl,
    )
    decide_kernel[grid](
        scores_ptr=given.scores,
        bias_ptr=given.correction_bias,
        ids_ptr=given.topk_ids,
        weights_ptr=given.topk_weights,
        row_class_ptr=given.row_class,
        budget_ptr=given.budget,
        demand_ptr=given.demand,
        out_ids_ptr=out.ids,
        out_weights_ptr=out.weights,
        active_ptr=out.active,
        numbers_ptr=out.numbers,
        scratch_ptr=out.scratch,
        num_rows=num_rows,
        LAYOUT=out.layout,
        POLICY=policy.rules,
        SCORING=given.scoring,
        BLOCK_M=tiles.rows,
        HAS_PDL=is_pdl,
        num_warps=tiles.num_warps,
        launch_pdl=is_pdl,
    )
    if not out.layout.num_scheduled:
        return
    place_kernel[grid](
        out_ids_ptr=out.ids,
        out_weights_ptr=out.weights,
        row_class_ptr=given.row_class,
        active_ptr=out.active,
        numbers_ptr=out.numbers,
        scratch_ptr=out.scratch,
        num_rows=num_rows,
        LAYOUT=out.layout,
        BLOCK_M=tiles.rows,
        HAS_PDL=is_pdl,
        num_warps=tiles.num_warps,
        launch_pdl=is_pdl,
    )


def check_policy(policy: Policy) -> None:
    """Raise ValueError for a policy that the kernels have no form for."""
    if not policy.has_triton_form:
        known = ", ".join(policies_for_triton())
        raise ValueError(
            f"policy: expected one that has a Triton form ({known}), got {policy.name}"
        )


def check_inputs(given: SelectInputs, out: SelectBuffers) -> None:
    """Raise ValueError for the first tensor that the kernels could not read or that does not fit
    the buffers. It repeats no check of `select`.
    """
    names = ("scores", "topk_ids", "topk_weights", "row_class", "correction_bias", "contribution")
    for name in names:
        tensor = getattr(given, name)
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    num_rows, top_k = given.topk_ids.shape
    layout = out.layout
    if num_rows > layout.max_rows:
        raise ValueError(f"topk_ids: expected at most {layout.max_rows} rows, got {num_rows}")
    for name, got, expected in (
        ("scores", given.scores.shape[1], layout.num_experts),
        ("topk_ids", top_k, layout.top_k),
        ("topk_ids", given.topk_ids.dtype, out.ids.dtype),
        ("topk_ids", given.topk_ids.device, out.ids.device),
    ):
        if got != expected:
            raise ValueError(f"{name}: expected {expected}, as in the buffers, got {got}")
