"""Kernels of `select_triton`: one launch for up to MAX_FUSED_ROWS rows, three beyond.

Latency is the cost here, so blocks stay in registers and meet in scratch memory. Each expert has
counters that slots scatter into, and per program one 64-bit word: bit r says that row r uses it.
From the words follow each row's own experts, the rows of each expert, and the schedule.
"""
# mypy: ignore-errors
# Device code is Triton's language, not Python's types.

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lynx_kernels.schedule.triton_lists import HEAD, write_lists, write_schedule, write_slots
from lynx_kernels.schedule.triton_words import add_rows, gather_by, popcount, read_slots
from lynx_kernels.select.triton_blocks import (
    add_demand,
    add_scores,
    is_bounded,
    read_scores,
    read_share,
)
from lynx_kernels.select.triton_refill import decide, write_rows

HEADER = tl.constexpr(16)  # int64 of scratch before the counters; the first is the ticket
COUNTERS = tl.constexpr(4)  # rows of counters
WORDS = tl.constexpr(8)  # programs whose words are read at a time


@triton.constexpr_function
def block_of(size):
    """Columns of a block over experts: at least 128, so that a row is all of a warp's lanes."""
    return max(128, triton.next_power_of_2(size))


@triton.constexpr_function
def num_ids(num_experts, first_expert, num_scheduled):
    return max(num_experts, first_expert + num_scheduled)


@triton.jit
def add_all_demand(
    scores_ptr, ids_ptr, weights_ptr, row_class_ptr, contribution_ptr, share, floor, is_capped,
    counters_ptr, first_row, end_row, E, K, POLICY, BLOCK_M, BLOCK_R, BLOCK_K, BLOCK_E,
):  # fmt: skip
    """Counters of the rows from `first_row` to `end_row`."""
    for start in tl.range(first_row, end_row, BLOCK_R):
        offs_r = start + tl.arange(0, BLOCK_R)
        kind, ids, weights = read_slots(
            ids_ptr, weights_ptr, row_class_ptr, offs_r, end_row, K, BLOCK_K
        )
        add_demand(
            kind, ids, weights, contribution_ptr, share, floor, is_capped, counters_ptr,
            E, POLICY, BLOCK_K, BLOCK_E,
        )  # fmt: skip
    if POLICY[1] == "scores":
        for start in tl.range(first_row, end_row, BLOCK_M):
            offs_m = start + tl.arange(0, BLOCK_M)
            scores = read_scores(scores_ptr, offs_m, end_row, E, BLOCK_E)
            add_scores(scores, row_class_ptr, offs_m, end_row, counters_ptr, E, BLOCK_E)


@triton.jit(do_not_specialize=["num_rows", "capacity"])
def select_kernel(
    scores_ptr,  # float32 [M, E]
    bias_ptr,  # float32 [E] or None
    ids_ptr,  # int32 or int64 [M, K]
    weights_ptr,  # float32 [M, K]
    row_class_ptr,  # uint8 [M]
    contribution_ptr,  # float32 [E] or None
    budget_ptr,  # int32 []
    floor_ptr,  # int32 []
    demand_ptr,  # float32 [] or None
    out_ids_ptr,  # as ids
    out_weights_ptr,  # float32 [M, K]
    active_ptr,  # uint8 [E]
    out_ptr,  # int32, see `SelectBuffers`
    scratch_ptr,  # int64, ticket 0 at launch
    num_rows,
    capacity,
    E: tl.constexpr,
    K: tl.constexpr,
    FIRST_EXPERT: tl.constexpr,
    NUM_SCHEDULED: tl.constexpr,
    POLICY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr,
    HAS_PDL: tl.constexpr,
):
    """Grid: NUM_PROGRAMS. Each counts the demand of all rows and decides for its own BLOCK_M; the
    last to finish writes the active set and the schedule (at once where there is one program).
    """
    BLOCK_K: tl.constexpr = triton.next_power_of_2(K)
    BLOCK_E: tl.constexpr = block_of(E)
    NUM_IDS: tl.constexpr = num_ids(E, FIRST_EXPERT, NUM_SCHEDULED)
    BLOCK_S: tl.constexpr = block_of(NUM_IDS)
    program = tl.program_id(0)
    counters_ptr = scratch_ptr + HEADER + program * (COUNTERS * BLOCK_E)
    words_ptr = scratch_ptr + HEADER + NUM_PROGRAMS * (COUNTERS * BLOCK_E)
    word_ptr = words_ptr + program * BLOCK_S
    offs_m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    if HAS_PDL:
        gdc_wait()
        gdc_launch_dependents()
    budget, floor, share = tl.load(budget_ptr), tl.load(floor_ptr), read_share(demand_ptr)
    kind, ids, weights = read_slots(
        ids_ptr, weights_ptr, row_class_ptr, offs_m, num_rows, K, BLOCK_K
    )
    tl.store(counters_ptr + tl.arange(0, COUNTERS * BLOCK_E), tl.full([], 0, tl.int64))
    tl.store(word_ptr + tl.arange(0, BLOCK_S), tl.full([], 0, tl.int64))
    tl.debug_barrier()
    add_rows(ids, (ids >= 0) & (ids < NUM_IDS), offs_m, word_ptr, BLOCK_M)

    is_own = (ids >= 0) & (ids < E)
    new_ids, is_lost = ids, ids < -1
    gates = tl.zeros([BLOCK_M, BLOCK_K], tl.float64)
    if POLICY[0] != "all":  # noqa: SIM102 (known at compile time, the next is not)
        if is_bounded(budget, share, E, POLICY):
            scores = read_scores(scores_ptr, offs_m, num_rows, E, BLOCK_E)
            if NUM_PROGRAMS == 1:
                add_demand(
                    kind, ids, weights, contribution_ptr, share, floor, budget < E, counters_ptr,
                    E, POLICY, BLOCK_K, BLOCK_E,
                )  # fmt: skip
                if POLICY[1] == "scores":
                    add_scores(scores, row_class_ptr, offs_m, num_rows, counters_ptr, E, BLOCK_E)
            else:
                add_all_demand(
                    scores_ptr, ids_ptr, weights_ptr, row_class_ptr, contribution_ptr, share, floor,
                    budget < E, counters_ptr, 0, num_rows, E, K, POLICY, BLOCK_M, BLOCK_R, BLOCK_K,
                    BLOCK_E,
                )  # fmt: skip
            tl.debug_barrier()
            new_ids, is_lost, gates = decide(
                ids, is_own, scores, scores_ptr, bias_ptr, counters_ptr, word_ptr, budget, offs_m,
                E, POLICY, BLOCK_M, BLOCK_K, BLOCK_E,
            )  # fmt: skip

    tl.debug_barrier()
    # Under way while the weights are worked out.
    words = tl.load(word_ptr + tl.arange(0, BLOCK_S), cache_modifier=".cg")
    mask = (new_ids >= 0) & (new_ids < NUM_IDS)
    own_words = gather_by(word_ptr, new_ids, mask)
    new_weights = write_rows(
        new_ids, weights, is_own, is_lost, gates, budget, share, out_ids_ptr, out_weights_ptr,
        out_ptr + HEAD + 3 * NUM_SCHEDULED, offs_m, num_rows, E, K, POLICY, BLOCK_M, BLOCK_K,
    )  # fmt: skip
    if NUM_PROGRAMS == 1:
        first_rows = write_lists(
            popcount(words), True, out_ptr, active_ptr, E, FIRST_EXPERT, NUM_SCHEDULED, BLOCK_S
        )
        if NUM_SCHEDULED > 0:
            write_slots(
                new_ids, new_weights, offs_m, first_rows, 0, own_words, out_ptr, num_rows,
                capacity, K, FIRST_EXPERT, NUM_SCHEDULED, BLOCK_M, BLOCK_K,
            )  # fmt: skip
    else:
        tl.debug_barrier()
        ticket = tl.atomic_add(scratch_ptr, 1, sem="acq_rel")
        if ticket == NUM_PROGRAMS - 1:
            tl.store(scratch_ptr, tl.full([], 0, tl.int64))
            write_schedule(
                out_ids_ptr, out_weights_ptr, row_class_ptr, words_ptr, out_ptr, active_ptr,
                num_rows, capacity, E, K, FIRST_EXPERT, NUM_SCHEDULED, NUM_PROGRAMS,
                BLOCK_M, BLOCK_R, BLOCK_K, BLOCK_S,
            )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def demand_kernel(
    scores_ptr,  # float32 [M, E]
    ids_ptr,  # int32 or int64 [M, K]
    weights_ptr,  # float32 [M, K]
    row_class_ptr,  # uint8 [M]
    contribution_ptr,  # float32 [E] or None
    budget_ptr,  # int32 []
    floor_ptr,  # int32 []
    demand_ptr,  # float32 [] or None
    scratch_ptr,  # int64, counters 0 at launch
    num_rows,
    E: tl.constexpr,
    K: tl.constexpr,
    POLICY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HAS_PDL: tl.constexpr,
):
    """First of three launches. Grid: M / BLOCK_M. Each adds the demand of its rows."""
    BLOCK_K: tl.constexpr = triton.next_power_of_2(K)
    BLOCK_E: tl.constexpr = block_of(E)
    if HAS_PDL:
        gdc_wait()
    first_row = tl.program_id(0) * BLOCK_M
    end_row = tl.minimum(first_row + BLOCK_M, num_rows)
    budget, floor, share = tl.load(budget_ptr), tl.load(floor_ptr), read_share(demand_ptr)
    add_all_demand(
        scores_ptr, ids_ptr, weights_ptr, row_class_ptr, contribution_ptr, share, floor, budget < E,
        scratch_ptr + HEADER, first_row, end_row, E, K, POLICY, BLOCK_M, BLOCK_R, BLOCK_K, BLOCK_E,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def decide_kernel(
    scores_ptr,  # float32 [M, E]
    bias_ptr,  # float32 [E] or None
    ids_ptr,  # int32 or int64 [M, K]
    weights_ptr,  # float32 [M, K]
    row_class_ptr,  # uint8 [M]
    budget_ptr,  # int32 []
    demand_ptr,  # float32 [] or None
    out_ids_ptr,  # as ids
    out_weights_ptr,  # float32 [M, K]
    out_ptr,  # int32, see `SelectBuffers`
    scratch_ptr,  # int64
    num_rows,
    E: tl.constexpr,
    K: tl.constexpr,
    FIRST_EXPERT: tl.constexpr,
    NUM_SCHEDULED: tl.constexpr,
    POLICY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_PDL: tl.constexpr,
):
    """Second of three launches. Grid: M / BLOCK_M. Each decides for its rows."""
    BLOCK_K: tl.constexpr = triton.next_power_of_2(K)
    BLOCK_E: tl.constexpr = block_of(E)
    NUM_IDS: tl.constexpr = num_ids(E, FIRST_EXPERT, NUM_SCHEDULED)
    BLOCK_S: tl.constexpr = block_of(NUM_IDS)
    program = tl.program_id(0)
    counters_ptr = scratch_ptr + HEADER
    word_ptr = counters_ptr + COUNTERS * BLOCK_E + program * BLOCK_S
    offs_m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    if HAS_PDL:
        gdc_wait()
    budget, share = tl.load(budget_ptr), read_share(demand_ptr)
    _, ids, weights = read_slots(ids_ptr, weights_ptr, row_class_ptr, offs_m, num_rows, K, BLOCK_K)
    tl.store(word_ptr + tl.arange(0, BLOCK_S), tl.full([], 0, tl.int64))
    tl.debug_barrier()
    add_rows(ids, (ids >= 0) & (ids < NUM_IDS), offs_m, word_ptr, BLOCK_M)
    tl.debug_barrier()
    is_own = (ids >= 0) & (ids < E)
    new_ids, is_lost = ids, ids < -1
    gates = tl.zeros([BLOCK_M, BLOCK_K], tl.float64)
    if POLICY[0] != "all":  # noqa: SIM102 (known at compile time, the next is not)
        if is_bounded(budget, share, E, POLICY):
            scores = read_scores(scores_ptr, offs_m, num_rows, E, BLOCK_E)
            new_ids, is_lost, gates = decide(
                ids, is_own, scores, scores_ptr, bias_ptr, counters_ptr, word_ptr, budget, offs_m,
                E, POLICY, BLOCK_M, BLOCK_K, BLOCK_E,
            )  # fmt: skip
    write_rows(
        new_ids, weights, is_own, is_lost, gates, budget, share, out_ids_ptr, out_weights_ptr,
        out_ptr + HEAD + 3 * NUM_SCHEDULED, offs_m, num_rows, E, K, POLICY, BLOCK_M, BLOCK_K,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "capacity"])
def place_kernel(
    out_ids_ptr,  # int32 or int64 [M, K]
    out_weights_ptr,  # float32 [M, K]
    row_class_ptr,  # uint8 [M]
    active_ptr,  # uint8 [E]
    out_ptr,  # int32, see `SelectBuffers`
    scratch_ptr,  # int64
    num_rows,
    capacity,
    E: tl.constexpr,
    K: tl.constexpr,
    FIRST_EXPERT: tl.constexpr,
    NUM_SCHEDULED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_PDL: tl.constexpr,
):
    """Third of three launches. Grid: M / BLOCK_M. Each schedules its rows, the first all else."""
    BLOCK_K: tl.constexpr = triton.next_power_of_2(K)
    BLOCK_E: tl.constexpr = block_of(E)
    BLOCK_S: tl.constexpr = block_of(num_ids(E, FIRST_EXPERT, NUM_SCHEDULED))
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    words_ptr = scratch_ptr + HEADER + COUNTERS * BLOCK_E
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
    offsets = write_lists(
        counts, program == 0, out_ptr, active_ptr, E, FIRST_EXPERT, NUM_SCHEDULED, BLOCK_S
    )
    if NUM_SCHEDULED > 0:
        _, ids, weights = read_slots(
            out_ids_ptr, out_weights_ptr, row_class_ptr, offs_m, num_rows, K, BLOCK_K
        )
        mask = (ids >= FIRST_EXPERT) & (ids < FIRST_EXPERT + NUM_SCHEDULED)
        own_words = gather_by(words_ptr + program * BLOCK_S, ids, mask)
        write_slots(
            ids, weights, offs_m, offsets + counts_before, 0, own_words, out_ptr, num_rows,
            capacity, K, FIRST_EXPERT, NUM_SCHEDULED, BLOCK_M, BLOCK_K,
        )  # fmt: skip
