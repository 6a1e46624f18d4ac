"""Kernels of `select_triton`: one launch for up to MAX_FUSED_ROWS rows, two or three beyond.

Latency is the cost here, so blocks stay in registers and meet in scratch memory. From the words of
the programs follow each row's own experts, the rows of each expert, and the schedule.

Arrays (M rows, K slots, E experts; P programs of BLOCK_M rows each):

| name | type, shape | written by |
|---|---|---|
| scores | float32 [M, E], or logits of any float | caller |
| bias | float32 [E], or None | caller |
| ids, weights | int32 or int64, float32 [M, K] | caller |
| row_class | uint8 [M] | caller |
| contribution | float32 [E], or None | caller |
| budget, floor, demand | int32, int32, float32 [], demand or None | caller, between launches |
| out_ids, out_weights | as ids, as weights | each program its rows |
| active | uint8 [E] | the last program to finish; the first of `place_kernel` |
| numbers | int32, see `Layout`: T, schedule, retained mass | lists: as active; rows: each program |
| scratch | int64, see `Layout`: ticket, words, counters | each program its words and counters |

LAYOUT is the `Layout` of numbers and scratch, POLICY the `Rules` of the policy. SCORING makes the
scores of logits where the budget or the demand binds: it costs nothing at full budget. Budget,
floor and demand are read on the device, so that a captured graph follows them.
"""
# mypy: ignore-errors
# Device code is Triton's language, not Python's types.

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lynx_kernels.schedule.triton_lists import (
    is_scheduled,
    write_lists,
    write_schedule,
    write_slots,
)
from lynx_kernels.schedule.triton_words import add_rows, flat, gather_by, popcount, read_slots
from lynx_kernels.select.triton_blocks import (
    add_all_demand,
    add_demand,
    add_scores,
    is_bounded,
    read_scores,
    read_share,
)
from lynx_kernels.select.triton_refill import decide, write_rows

# Views into one buffer of a server, at any multiple of four bytes: one variant serves them all.
CONTROLS = ["budget_ptr", "floor_ptr", "demand_ptr", "row_class_ptr"]
WORDS = tl.constexpr(8)  # programs whose words are read at a time


@triton.jit
def open_words(ids_ptr, weights_ptr, row_class_ptr, offs_m, num_rows, word_ptr, LAYOUT, BLOCK_M):
    """Class, ids and weights of a program's rows, with the program's words set from the ids."""
    kind, ids, weights = read_slots(
        ids_ptr, weights_ptr, row_class_ptr, offs_m, num_rows, LAYOUT.top_k, LAYOUT.block_slots
    )
    tl.store(word_ptr + tl.arange(0, LAYOUT.block_ids), tl.full([], 0, tl.int64))
    tl.debug_barrier()
    add_rows(ids, (ids >= 0) & (ids < LAYOUT.num_ids), offs_m, word_ptr, BLOCK_M)
    return kind, ids, weights


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=CONTROLS)
def select_kernel(
    scores_ptr,
    bias_ptr,
    ids_ptr,
    weights_ptr,
    row_class_ptr,
    contribution_ptr,
    budget_ptr,
    floor_ptr,
    demand_ptr,
    out_ids_ptr,
    out_weights_ptr,
    active_ptr,
    numbers_ptr,
    scratch_ptr,  # ticket 0 at launch
    num_rows,
    LAYOUT: tl.constexpr,
    POLICY: tl.constexpr,
    SCORING: tl.constexpr,  # of logits, where scores_ptr holds these
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,  # rows whose demand is added at a time
    BLOCK_T: tl.constexpr,  # all rows
    NUM_PROGRAMS: tl.constexpr,
    HAS_PDL: tl.constexpr,
):
    """The whole selection. Grid: NUM_PROGRAMS, program p owns rows [p BLOCK_M, (p + 1) BLOCK_M).

    Each adds the demand of all rows to counters of its own and decides for its rows; the last to
    finish writes the active set and the schedule (at once where there is one program).
    """
    BLOCK_K: tl.constexpr = LAYOUT.block_slots
    program = tl.program_id(0)
    counters_ptr = scratch_ptr + LAYOUT.counters + program * LAYOUT.num_counters
    word_ptr = scratch_ptr + LAYOUT.words + program * LAYOUT.block_ids
    offs_m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    if HAS_PDL:
        gdc_wait()
        gdc_launch_dependents()
    budget, floor, share = tl.load(budget_ptr), tl.load(floor_ptr), read_share(demand_ptr)
    tl.store(counters_ptr + tl.arange(0, LAYOUT.num_counters), tl.full([], 0, tl.int64))
    kind, ids, weights = open_words(
        ids_ptr, weights_ptr, row_class_ptr, offs_m, num_rows, word_ptr, LAYOUT, BLOCK_M
    )
    is_own = (ids >= 0) & (ids < LAYOUT.num_experts)
    new_ids, is_lost = ids, ids < -1
    gates = tl.zeros([BLOCK_M, BLOCK_K], tl.float64)
    if POLICY.demand != "all":  # noqa: SIM102 (known at compile time, the next is not)
        if is_bounded(budget, share, LAYOUT, POLICY):
            is_capped = budget < LAYOUT.num_experts
            if NUM_PROGRAMS == 1:
                scores, top = read_scores(scores_ptr, offs_m, num_rows, LAYOUT, SCORING)
                add_demand(
                    kind, ids, weights, contribution_ptr, share, floor, is_capped, counters_ptr,
                    LAYOUT, POLICY,
                )  # fmt: skip
                if POLICY.importance == "scores":
                    add_scores(scores, row_class_ptr, offs_m, num_rows, counters_ptr, LAYOUT)
            else:
                add_all_demand(
                    scores_ptr, ids_ptr, weights_ptr, row_class_ptr, contribution_ptr, share, floor,
                    is_capped, counters_ptr, 0, num_rows, LAYOUT, POLICY, SCORING, BLOCK_M, BLOCK_R,
                )  # fmt: skip
                scores, top = read_scores(scores_ptr, offs_m, num_rows, LAYOUT, SCORING)
            tl.debug_barrier()
            new_ids, is_lost, gates = decide(
                ids, is_own, scores, top, scores_ptr, bias_ptr, counters_ptr, word_ptr,
                budget, offs_m, LAYOUT, POLICY, SCORING, BLOCK_M,
            )  # fmt: skip

    tl.debug_barrier()
    # Under way while the weights are worked out.
    words = tl.load(word_ptr + tl.arange(0, LAYOUT.block_ids), cache_modifier=".cg")
    own_words = gather_by(word_ptr, new_ids, (new_ids >= 0) & (new_ids < LAYOUT.num_ids))
    new_weights = write_rows(
        new_ids, weights, is_own, is_lost, gates, budget, share, out_ids_ptr, out_weights_ptr,
        numbers_ptr, offs_m, num_rows, LAYOUT, POLICY, BLOCK_M,
    )  # fmt: skip
    if NUM_PROGRAMS == 1:
        first_rows = write_lists(popcount(words), True, numbers_ptr, active_ptr, LAYOUT)
        if LAYOUT.num_scheduled > 0:
            write_slots(
                new_ids, new_weights, offs_m, first_rows, 0, own_words, numbers_ptr, num_rows,
                LAYOUT, BLOCK_M,
            )  # fmt: skip
    else:
        tl.debug_barrier()
        ticket = tl.atomic_add(scratch_ptr, 1, sem="acq_rel")
        if ticket == NUM_PROGRAMS - 1:
            tl.store(scratch_ptr, tl.full([], 0, tl.int64))
            write_schedule(
                out_ids_ptr, out_weights_ptr, row_class_ptr, scratch_ptr, numbers_ptr, active_ptr,
                num_rows, LAYOUT, NUM_PROGRAMS, BLOCK_M, BLOCK_T,
            )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=CONTROLS)
def demand_kernel(
    scores_ptr,
    ids_ptr,
    weights_ptr,
    row_class_ptr,
    contribution_ptr,
    budget_ptr,
    floor_ptr,
    demand_ptr,
    scratch_ptr,  # shared counters 0 at launch
    num_rows,
    LAYOUT: tl.constexpr,
    POLICY: tl.constexpr,
    SCORING: tl.constexpr,  # of logits, where scores_ptr holds these
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HAS_PDL: tl.constexpr,
):
    """First of several launches: add all demand to one set of counters.

    Grid: M / BLOCK_M, program p adds the demand of rows [p BLOCK_M, (p + 1) BLOCK_M).
    """
    if HAS_PDL:
        gdc_wait()
    first_row = tl.program_id(0) * BLOCK_M
    end_row = tl.minimum(first_row + BLOCK_M, num_rows)
    budget, floor, share = tl.load(budget_ptr), tl.load(floor_ptr), read_share(demand_ptr)
    add_all_demand(
        scores_ptr, ids_ptr, weights_ptr, row_class_ptr, contribution_ptr, share, floor,
        budget < LAYOUT.num_experts, scratch_ptr + LAYOUT.shared_counters, first_row, end_row,
        LAYOUT, POLICY, SCORING, BLOCK_M, BLOCK_R,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=CONTROLS)
def decide_kernel(
    scores_ptr,
    bias_ptr,
    ids_ptr,
    weights_ptr,
    row_class_ptr,
    budget_ptr,
    demand_ptr,
    out_ids_ptr,
    out_weights_ptr,
    active_ptr,
    numbers_ptr,
    scratch_ptr,  # ticket and flags of used experts 0 at launch
    num_rows,
    LAYOUT: tl.constexpr,
    POLICY: tl.constexpr,
    SCORING: tl.constexpr,  # of logits, where scores_ptr holds these
    BLOCK_M: tl.constexpr,
    HAS_PDL: tl.constexpr,
):
    """Second of several launches: decide from the counters.

    Grid: M / BLOCK_M, program p writes rows [p BLOCK_M, (p + 1) BLOCK_M) and its words. The last to
    finish clears the counters, and writes the active set where no schedule comes with it.
    """
    BLOCK_K: tl.constexpr = LAYOUT.block_slots
    program = tl.program_id(0)
    counters_ptr = scratch_ptr + LAYOUT.shared_counters
    word_ptr = scratch_ptr + LAYOUT.words + program * LAYOUT.block_ids
    offs_m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    if HAS_PDL:
        gdc_wait()
    budget, share = tl.load(budget_ptr), read_share(demand_ptr)
    _, ids, weights = open_words(
        ids_ptr, weights_ptr, row_class_ptr, offs_m, num_rows, word_ptr, LAYOUT, BLOCK_M
    )
    tl.debug_barrier()
    is_own = (ids >= 0) & (ids < LAYOUT.num_experts)
    new_ids, is_lost = ids, ids < -1
    gates = tl.zeros([BLOCK_M, BLOCK_K], tl.float64)
    if POLICY.demand != "all":  # noqa: SIM102 (known at compile time, the next is not)
        if is_bounded(budget, share, LAYOUT, POLICY):
            scores, top = read_scores(scores_ptr, offs_m, num_rows, LAYOUT, SCORING)
            new_ids, is_lost, gates = decide(
                ids, is_own, scores, top, scores_ptr, bias_ptr, counters_ptr, word_ptr,
                budget, offs_m, LAYOUT, POLICY, SCORING, BLOCK_M,
            )  # fmt: skip
    write_rows(
        new_ids, weights, is_own, is_lost, gates, budget, share, out_ids_ptr, out_weights_ptr,
        numbers_ptr, offs_m, num_rows, LAYOUT, POLICY, BLOCK_M,
    )  # fmt: skip
    if LAYOUT.num_scheduled == 0:
        is_used = (new_ids >= 0) & (new_ids < LAYOUT.num_experts)
        flag_ptr = scratch_ptr + LAYOUT.used + flat(new_ids)
        tl.store(flag_ptr, tl.full([], 1, tl.int64), mask=flat(is_used))
    tl.debug_barrier()
    ticket = tl.atomic_add(scratch_ptr, 1, sem="acq_rel")
    if ticket == tl.num_programs(0) - 1:
        tl.store(scratch_ptr, tl.full([], 0, tl.int64))
        tl.store(counters_ptr + tl.arange(0, LAYOUT.num_counters), tl.full([], 0, tl.int64))
        if LAYOUT.num_scheduled == 0:
            write_active(scratch_ptr + LAYOUT.used, numbers_ptr, active_ptr, LAYOUT)


@triton.jit
def write_active(used_ptr, numbers_ptr, active_ptr, LAYOUT):
    """Write active set and T from the flags of used experts, and clear these."""
    offs_e = tl.arange(0, LAYOUT.block_experts)
    is_used = tl.load(used_ptr + offs_e, cache_modifier=".cg") != 0
    tl.store(active_ptr + offs_e, is_used.to(tl.int8), mask=offs_e < LAYOUT.num_experts)
    tl.store(numbers_ptr, tl.sum(is_used.to(tl.int32), axis=0))
    tl.store(used_ptr + offs_e, tl.full([], 0, tl.int64))


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=CONTROLS)
def place_kernel(
    out_ids_ptr,
    out_weights_ptr,
    row_class_ptr,
    active_ptr,
    numbers_ptr,
    scratch_ptr,
    num_rows,
    LAYOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_PDL: tl.constexpr,
):
    """Third launch, where there is a schedule: this and the active set, from all words.

    Grid: M / BLOCK_M, program p schedules rows [p BLOCK_M, (p + 1) BLOCK_M); the first writes the
    active set and the lists.
    """
    BLOCK_S: tl.constexpr = LAYOUT.block_ids
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    words_ptr = scratch_ptr + LAYOUT.words
    offs_m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    if HAS_PDL:
        gdc_wait()
    counts = tl.zeros([BLOCK_S], tl.int32)
    counts_before = tl.zeros([BLOCK_S], tl.int32)
    for start in tl.range(0, num_programs, WORDS):
        offs_w = start + tl.arange(0, WORDS)[:, None]
        offs = offs_w * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
        rows = popcount(tl.load(words_ptr + offs, mask=offs_w < num_programs, other=0))
        counts += tl.sum(rows, axis=0)
        counts_before += tl.sum(tl.where(offs_w < program, rows, 0), axis=0)
    offsets = write_lists(counts, program == 0, numbers_ptr, active_ptr, LAYOUT)
    _, ids, weights = read_slots(
        out_ids_ptr, out_weights_ptr, row_class_ptr, offs_m, num_rows,
        LAYOUT.top_k, LAYOUT.block_slots,
    )  # fmt: skip
    own_words = gather_by(words_ptr + program * BLOCK_S, ids, is_scheduled(ids, LAYOUT))
    write_slots(
        ids, weights, offs_m, offsets + counts_before, 0, own_words, numbers_ptr, num_rows,
        LAYOUT, BLOCK_M,
    )  # fmt: skip
