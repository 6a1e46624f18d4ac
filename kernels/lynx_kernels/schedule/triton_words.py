"""Device code: the slots of a batch, and the words that say which rows use an expert.

A slot is one (row, k) of the routing. A program of BLOCK_M rows has a 64-bit word per expert id;
bit r says that its row r uses the expert. Programs meet in words that lie in scratch memory.
"""
# mypy: ignore-errors
# Device code is Triton's language, not Python's types.

import triton
import triton.language as tl

PAD = tl.constexpr(0)  # RowClass


@triton.jit
def popcount(words):
    x = words.to(tl.uint64, bitcast=True)
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def bit_of(row):
    return tl.full([], 1, tl.int64) << row.to(tl.int64)


@triton.jit
def flat(slots):
    """[BLOCK_M, BLOCK_K] as one row: how slots meet scattered addresses, whatever their order."""
    return tl.reshape(slots, [slots.shape[0] * slots.shape[1]])


@triton.jit
def gather_by(pointer, slots, mask):
    """Values at `pointer + slots`, 0 where not mask; read from L2, where other SMs write."""
    found = tl.load(pointer + flat(slots), mask=flat(mask), other=0, cache_modifier=".cg")
    return tl.reshape(found, slots.shape)


@triton.jit
def read_slots(ids_ptr, weights_ptr, row_class_ptr, offs_m, num_rows, K, BLOCK_K):
    """Class [BLOCK_M, 1] of each row, ids and weights of its slots; pads hold empty slots."""
    offs_k = tl.arange(0, BLOCK_K)
    mask = (offs_m < num_rows)[:, None] & (offs_k < K)[None, :]
    offs = offs_m[:, None] * K + offs_k[None, :]
    kind = tl.load(row_class_ptr + offs_m, mask=offs_m < num_rows, other=PAD)[:, None]
    ids = tl.load(ids_ptr + offs, mask=mask, other=-1).to(tl.int32)
    weights = tl.load(weights_ptr + offs, mask=mask, other=0.0)
    is_live = kind != PAD
    return kind, tl.where(is_live, ids, -1), tl.where(is_live, weights, 0.0)


@triton.jit
def add_rows(ids, mask, offs_m, word_ptr, BLOCK_M):
    """Set the bit of each slot's row in the word of its expert."""
    bits = tl.zeros_like(ids).to(tl.int64) + bit_of(offs_m % BLOCK_M)[:, None]
    tl.atomic_or(word_ptr + flat(ids), flat(bits), mask=flat(mask), sem="relaxed")
