"""Batch-aware expert selection: the public `select`."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lynx_kernels.device import missing_for_triton
from lynx_kernels.select.limits import MAX_EXPERTS, MAX_TOP_K
from lynx_kernels.select.policies import MAX_ROWS, POLICIES, Policy
from lynx_kernels.select.selection import RowClass, Selection
from lynx_kernels.select.torch_form import select_torch

logger = logging.getLogger(__name__)

ID_DTYPES = (torch.int32, torch.int64)


def select(
    scores: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_class: Tensor,
    *,
    budget: Tensor,
    floor: Tensor,
    demand: Tensor | None = None,
    policy: str | Policy = "lynx",
    correction_bias: Tensor | None = None,
    similarity: Tensor | None = None,
    contribution: Tensor | None = None,
    scheduled: range | None = None,
) -> Selection:
    """Let flexible rows share experts, so that at most `budget` of them are active.

    demanded  = each flexible row's own experts that the policy insists on, at least its top `floor`
    active    = exact rows' experts + floors, then demanded ones by importance up to `budget`
    row       = its own active experts, lost slots re-filled from the active ones (policy)

    Args:
        scores: float32 [M, E], router scores, not negative (softmax or sigmoid).
        topk_ids: int32 or int64 [M, K], distinct in a row. Ids from E up are fused shared experts,
            negative ids empty slots: both pass through, are not counted and hold no mass.
        topk_weights: float32 [M, K], at any scale.
        row_class: uint8 [M], `RowClass`.
        budget: int32 [], cap on the number of active experts T.
        floor: int32 [], own experts that a flexible row never loses.
        demand: float32 [] in [0, 1], what a row insists on; None and NaN: 1.
        policy: a name from `POLICIES`, or rules of one's own.
        correction_bias: float32 [E]; refills are ranked by scores + bias, weighed by scores.
        similarity: float32 [E, E], how like an expert's output (row) another's is; for `sere`.
        contribution: float32 [E] in [0, 1], how much an expert's output usually weighs beside the
            others'; multiplies its importance, for `lynx`. Values out of range count as 1.
        scheduled: ids of the experts in w13, over which a `schedule` is made: from E up there are
            fused shared ones, and an expert-parallel rank has some of the routed ones. None: the E
            routed ones. Selection itself is the same on all ranks, over all experts.

    The inputs are not written; where nothing changes, the result may hold the inputs themselves.
    On CUDA, contiguous inputs of at most 512 experts and 16 slots take the Triton kernels, which
    also make the `schedule`; others, and the policies for comparison that have no Triton form, take
    torch operations, and one warning says so.
    The guarantees and the maths of each policy: kernels/README.md.
    """
    chosen = policy if isinstance(policy, Policy) else find_policy(policy)
    check_arguments(
        scores, topk_ids, topk_weights, row_class, budget, floor, demand, correction_bias
    )
    check_options(scores, chosen, similarity, contribution, scheduled)
    given = (scores, topk_ids, topk_weights, row_class, correction_bias, contribution)
    if scores.device.type == "cuda" and can_launch(
        given, scores.shape[1], topk_ids.shape[1], chosen
    ):
        from lynx_kernels.select.triton_form import select_triton

        return select_triton(
            scores,
            topk_ids,
            topk_weights,
            row_class,
            budget=budget,
            floor=floor,
            demand=demand,
            policy=chosen,
            correction_bias=correction_bias,
            contribution=contribution,
            scheduled=scheduled or range(scores.shape[1]),
        )
    run = cpu_form() if scores.device.type == "cpu" else select_torch
    return run(
        scores,
        topk_ids,
        topk_weights,
        row_class,
        budget=budget,
        floor=floor,
        demand=demand,
        policy=chosen,
        correction_bias=correction_bias,
        similarity=similarity if chosen.needs_similarity else None,
        contribution=contribution,
    )


@cache
def cpu_form() -> Callable[..., Selection]:
    """The compiled rows where numba is installed (SGLang brings it), else torch operations."""
    if importlib.util.find_spec("numba") is None:
        logger.warning("numba is not installed: selection on CPU runs five times slower, in torch")
        return select_torch
    from lynx_kernels.select.cpu import select_cpu

    return select_cpu


def can_launch(
    given: tuple[Tensor | None, ...], num_experts: int, top_k: int, policy: Policy
) -> bool:
    """Whether the Triton kernels serve these inputs; a warning says why they do not."""
    reason = missing_for_triton()
    if reason is None and not policy.has_triton_form:
        reason = f"policy {policy.name} has no Triton form"
    if reason is None and (num_experts > MAX_EXPERTS or top_k > MAX_TOP_K):
        reason = (
            f"{num_experts} experts and {top_k} slots, of at most {MAX_EXPERTS} and {MAX_TOP_K}"
        )
    if reason is None and not all(each is None or each.is_contiguous() for each in given):
        reason = "an input is not contiguous"
    if reason is not None:
        note_torch_on_cuda(reason)
    return reason is None


@cache
def note_torch_on_cuda(reason: str) -> None:
    """Once for each reason."""
    logger.warning("selection on CUDA runs in torch operations, not in one launch: %s", reason)


def warm_up(num_experts: int, top_k: int) -> None:
    """Compile the CPU path for int32 and int64 ids, so that no step waits for it."""
    scores = torch.full((2, num_experts), 1.0 / num_experts)
    row_class = torch.full((2,), int(RowClass.FLEXIBLE), dtype=torch.uint8)
    one = torch.tensor(1, dtype=torch.int32)
    for dtype in ID_DTYPES:
        ids = torch.arange(2 * top_k, dtype=dtype).reshape(2, top_k) % num_experts
        weights = torch.full((2, top_k), 1.0 / top_k)
        select(scores, ids, weights, row_class, budget=one, floor=one)


def find_policy(name: str) -> Policy:
    try:
        return POLICIES[name]
    except KeyError:
        raise ValueError(f"policy: expected one of {', '.join(POLICIES)}; got {name!r}") from None


def check_arguments(
    scores: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_class: Tensor,
    budget: Tensor,
    floor: Tensor,
    demand: Tensor | None,
    correction_bias: Tensor | None,
) -> None:
    """Raise ValueError for the first argument that does not fit; no tensor is read."""
    if scores.ndim != 2 or topk_ids.ndim != 2:
        name, got = ("scores", scores) if scores.ndim != 2 else ("topk_ids", topk_ids)
        raise ValueError(f"{name}: expected 2 dimensions, got shape {tuple(got.shape)}")
    num_rows, num_experts = scores.shape
    top_k = topk_ids.shape[1]
    if num_rows > MAX_ROWS or num_experts == 0 or top_k == 0:
        raise ValueError(
            f"scores, topk_ids: expected at most {MAX_ROWS} rows, and at least 1 expert and slot; "
            f"got shapes {tuple(scores.shape)}, {tuple(topk_ids.shape)}"
        )
    if topk_ids.dtype not in ID_DTYPES:
        raise ValueError(f"topk_ids: expected dtype int32 or int64, got {topk_ids.dtype}")
    device = scores.device
    _check("scores", scores, torch.float32, (num_rows, num_experts), device)
    _check("topk_ids", topk_ids, topk_ids.dtype, (num_rows, top_k), device)
    _check("topk_weights", topk_weights, torch.float32, (num_rows, top_k), device)
    _check("row_class", row_class, torch.uint8, (num_rows,), device)
    _check("budget", budget, torch.int32, (), device)
    _check("floor", floor, torch.int32, (), device)
    if demand is not None:
        _check("demand", demand, torch.float32, (), device)
    if correction_bias is not None:
        _check("correction_bias", correction_bias, torch.float32, (num_experts,), device)


def check_options(
    scores: Tensor,
    policy: Policy,
    similarity: Tensor | None,
    contribution: Tensor | None,
    scheduled: range | None,
) -> None:
    """Raise ValueError for the first option that does not fit the policy or the scores."""
    num_experts, device = scores.shape[1], scores.device
    if scheduled is not None and (scheduled.step != 1 or scheduled.start < 0 or not scheduled):
        raise ValueError(f"scheduled: expected a range of ids without gaps, got {scheduled}")
    if policy.needs_similarity:
        if similarity is None:
            raise ValueError(f"similarity: expected a tensor for policy {policy.name}, got None")
        _check("similarity", similarity, torch.float32, (num_experts, num_experts), device)
    if contribution is not None:
        if not policy.takes_contribution:
            raise ValueError(f"contribution: expected None for policy {policy.name}, got a tensor")
        _check("contribution", contribution, torch.float32, (num_experts,), device)


def _check(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
        raise ValueError(
            f"{name}: expected {dtype} {shape} on {device}, "
            f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        )
