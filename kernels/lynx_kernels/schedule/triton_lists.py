"""Device code that writes the active set and the `Schedule`, from the words of the programs.

LAYOUT is the `Layout` of select/layout.py, whose offsets `numbers_ptr` is read by.
"""
# mypy: ignore-errors
# Device code is Triton's language, not Python's types.

import triton
import triton.language as tl

from lynx_kernels.schedule.triton_words import bit_of, flat, gather_by, popcount, read_slots

WORDS = tl.constexpr(8)  # programs whose words are read at a time


@triton.jit
def is_scheduled(ids, LAYOUT):
    return (ids >= LAYOUT.first_expert) & (ids < LAYOUT.end_expert)


@triton.jit
def write_lists(counts, is_writer, numbers_ptr, active_ptr, LAYOUT):
    """Write the active set and the schedule's lists, from the rows [block_ids] of each id.

    Returns the first row [block_ids] of each id in the schedule.
    """
    offs_s = tl.arange(0, LAYOUT.block_ids)
    is_used = (counts > 0) & (offs_s < LAYOUT.num_experts)
    is_here = is_scheduled(offs_s, LAYOUT) & (counts > 0)
    # Experts before in the upper half, rows before in the lower one: one scan.
    both = tl.where(is_here, counts.to(tl.int64) + (1 << 32), 0)
    before = tl.cumsum(both, axis=0) - both
    place = (before >> 32).to(tl.int32)
    offsets = before.to(tl.int32)
    if is_writer:
        sizes = tl.sum(is_used.to(tl.int32) + (is_here.to(tl.int32) << 16), axis=0)
        tl.store(active_ptr + offs_s, is_used.to(tl.int8), mask=offs_s < LAYOUT.num_experts)
        tl.store(numbers_ptr, sizes & 0xFFFF)
        tl.store(numbers_ptr + 1, sizes >> 16)
        expert = offs_s - LAYOUT.first_expert
        tl.store(numbers_ptr + LAYOUT.experts + place, expert, mask=is_here)
        tl.store(numbers_ptr + LAYOUT.counts + place, counts, mask=is_here)
        tl.store(numbers_ptr + LAYOUT.offsets + place, offsets, mask=is_here)
    return offsets


@triton.jit
def write_slots(
    ids, weights, offs_m, first_rows, rows_before, words, numbers_ptr, num_rows, LAYOUT, BLOCK_M
):
    """Write the schedule's rows of these slots: an id's first row, then the rows of the programs
    before and of the program itself, as its word says.
    """
    offs_k = tl.arange(0, LAYOUT.block_slots)
    is_here = is_scheduled(ids, LAYOUT)
    first_row = tl.reshape(tl.gather(first_rows, flat(tl.where(is_here, ids, 0)), 0), ids.shape)
    is_before = (bit_of(offs_m % BLOCK_M) - 1)[:, None]
    row = first_row + rows_before + popcount(words & is_before)
    row_ptr, mask = numbers_ptr + flat(row), flat(is_here)
    tl.store(row_ptr + LAYOUT.tokens, flat(offs_m[:, None] + 0 * ids), mask=mask)
    tl.store(row_ptr + LAYOUT.weights, flat(weights.to(tl.int32, bitcast=True)), mask=mask)
    offs = offs_m[:, None] * LAYOUT.top_k + offs_k[None, :]
    mask = (offs_m < num_rows)[:, None] & (offs_k < LAYOUT.top_k)[None, :]
    tl.store(numbers_ptr + LAYOUT.slots + offs, tl.where(is_here, row, -1), mask=mask)


@triton.jit
def write_schedule(
    out_ids_ptr, out_weights_ptr, row_class_ptr, scratch_ptr, numbers_ptr, active_ptr, num_rows,
    LAYOUT, NUM_PROGRAMS, BLOCK_M, BLOCK_T,
):  # fmt: skip
    """Write active set and schedule of all rows, BLOCK_T at most, from what all programs wrote."""
    BLOCK_S: tl.constexpr = LAYOUT.block_ids
    words_ptr, before_ptr = scratch_ptr + LAYOUT.words, scratch_ptr + LAYOUT.words_before
    counts = tl.zeros([BLOCK_S], tl.int32)
    for start in tl.static_range(0, NUM_PROGRAMS, WORDS):
        offs_p = start + tl.arange(0, WORDS)[:, None]
        offs = offs_p * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
        is_used = offs_p < NUM_PROGRAMS
        rows = popcount(tl.load(words_ptr + offs, mask=is_used, other=0, cache_modifier=".cg"))
        before = counts[None, :] + tl.cumsum(rows, axis=0) - rows  # [WORDS, BLOCK_S]
        tl.store(before_ptr + offs, before.to(tl.int64), mask=is_used)
        counts += tl.sum(rows, axis=0)
    first_rows = write_lists(counts, True, numbers_ptr, active_ptr, LAYOUT)
    tl.debug_barrier()
    if LAYOUT.num_scheduled > 0:
        offs_m = tl.arange(0, BLOCK_T)
        _, ids, weights = read_slots(
            out_ids_ptr, out_weights_ptr, row_class_ptr, offs_m, num_rows,
            LAYOUT.top_k, LAYOUT.block_slots,
        )  # fmt: skip
        index = (offs_m // BLOCK_M)[:, None] * BLOCK_S + ids
        mask = is_scheduled(ids, LAYOUT)
        own_words = gather_by(words_ptr, index, mask)
        rows_before = gather_by(before_ptr, index, mask).to(tl.int32)
        write_slots(
            ids, weights, offs_m, first_rows, rows_before, own_words, numbers_ptr, num_rows,
            LAYOUT, BLOCK_M,
        )  # fmt: skip
