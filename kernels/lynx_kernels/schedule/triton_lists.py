"""Building blocks that write the active set and the `Schedule`, from the words of the programs.

A word belongs to one program and one expert id; bit r says that row r of the program uses it.
"""
# mypy: ignore-errors
# Device code is Triton's language, not Python's types.

import triton
import triton.language as tl

from lynx_kernels.schedule.triton_words import bit_of, flat, gather_by, popcount, read_slots

HEAD = tl.constexpr(4)  # int32 of output before the lists: T, the schedule's, unused


@triton.jit
def write_lists(counts, is_writer, out_ptr, active_ptr, E, FIRST_EXPERT, NUM_SCHEDULED, BLOCK_S):
    """The active set and the schedule's lists, from the rows of each id; its first row of each."""
    offs_s = tl.arange(0, BLOCK_S)
    is_used = (counts > 0) & (offs_s < E)
    is_here = (offs_s >= FIRST_EXPERT) & (offs_s < FIRST_EXPERT + NUM_SCHEDULED) & (counts > 0)
    # Experts before in the upper half, rows before in the lower one: one scan.
    both = tl.where(is_here, counts.to(tl.int64) + (1 << 32), 0)
    before = tl.cumsum(both, axis=0) - both
    place = (before >> 32).to(tl.int32)
    offsets = before.to(tl.int32)
    if is_writer:
        sizes = tl.sum(is_used.to(tl.int32) + (is_here.to(tl.int32) << 16), axis=0)
        tl.store(active_ptr + offs_s, is_used.to(tl.int8), mask=offs_s < E)
        tl.store(out_ptr, sizes & 0xFFFF)
        tl.store(out_ptr + 1, sizes >> 16)
        experts_ptr = out_ptr + HEAD
        tl.store(experts_ptr + place, offs_s - FIRST_EXPERT, mask=is_here)
        tl.store(experts_ptr + NUM_SCHEDULED + place, counts, mask=is_here)
        tl.store(experts_ptr + 2 * NUM_SCHEDULED + place, offsets, mask=is_here)
    return offsets


@triton.jit
def write_slots(
    ids, weights, offs_m, first_rows, rows_before, words, out_ptr, num_rows, capacity, K,
    FIRST_EXPERT, NUM_SCHEDULED, BLOCK_M, BLOCK_K,
):  # fmt: skip
    """The schedule's rows for these slots: an id's first row, then the rows of the programs before
    and of the program itself, as its word says.
    """
    offs_k = tl.arange(0, BLOCK_K)
    is_here = (ids >= FIRST_EXPERT) & (ids < FIRST_EXPERT + NUM_SCHEDULED)
    first_row = tl.reshape(tl.gather(first_rows, flat(tl.where(is_here, ids, 0)), 0), ids.shape)
    is_before = (bit_of(offs_m % BLOCK_M) - 1)[:, None]
    row = first_row + rows_before + popcount(words & is_before)
    slots_ptr = out_ptr + HEAD + 3 * NUM_SCHEDULED + capacity
    num_slots = capacity * K
    row_ptr, mask = slots_ptr + flat(row), flat(is_here)
    tl.store(row_ptr, flat(offs_m[:, None] + 0 * ids), mask=mask)
    tl.store(row_ptr + num_slots, flat(weights.to(tl.int32, bitcast=True)), mask=mask)
    offs = offs_m[:, None] * K + offs_k[None, :]
    mask = (offs_m < num_rows)[:, None] & (offs_k < K)[None, :]
    tl.store(slots_ptr + 2 * num_slots + offs, tl.where(is_here, row, -1), mask=mask)


@triton.jit
def write_schedule(
    out_ids_ptr, out_weights_ptr, row_class_ptr, words_ptr, out_ptr, active_ptr, num_rows, capacity,
    E, K, FIRST_EXPERT, NUM_SCHEDULED, NUM_PROGRAMS, BLOCK_M, BLOCK_R, BLOCK_K, BLOCK_S,
):  # fmt: skip
    """Active set and schedule from what all programs wrote."""
    offs_s = tl.arange(0, BLOCK_S)
    before_ptr = words_ptr + NUM_PROGRAMS * BLOCK_S
    counts = tl.zeros([BLOCK_S], tl.int32)
    for program in tl.static_range(NUM_PROGRAMS):
        tl.store(before_ptr + program * BLOCK_S + offs_s, counts.to(tl.int64))
        words = tl.load(words_ptr + program * BLOCK_S + offs_s, cache_modifier=".cg")
        counts += popcount(words)
    first_rows = write_lists(
        counts, True, out_ptr, active_ptr, E, FIRST_EXPERT, NUM_SCHEDULED, BLOCK_S
    )
    tl.debug_barrier()
    if NUM_SCHEDULED > 0:
        for start in tl.range(0, num_rows, BLOCK_R):
            offs_m = start + tl.arange(0, BLOCK_R)
            _, ids, weights = read_slots(
                out_ids_ptr, out_weights_ptr, row_class_ptr, offs_m, num_rows, K, BLOCK_K
            )
            index = (offs_m // BLOCK_M)[:, None] * BLOCK_S + ids
            mask = (ids >= FIRST_EXPERT) & (ids < FIRST_EXPERT + NUM_SCHEDULED)
            own_words = gather_by(words_ptr, index, mask)
            rows_before = gather_by(before_ptr, index, mask).to(tl.int32)
            write_slots(
                ids, weights, offs_m, first_rows, rows_before, own_words, out_ptr, num_rows,
                capacity, K, FIRST_EXPERT, NUM_SCHEDULED, BLOCK_M, BLOCK_K,
            )  # fmt: skip
