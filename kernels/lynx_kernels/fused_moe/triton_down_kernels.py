"""Device code of the fused MoE: down with the weighted sum, in two forms.

Up to BT rows: one product over all active experts (`down_concat_kernel`). Above: a product per
expert (`down_kernel`), then the sum (`combine_kernel`). Neither adds atomically.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from lynx_kernels.fused_moe.triton_gate_up_kernels import (
    chunk_ends,
    find_chunk,
    multiply,
    rescale,
    wait_and_release,
)

UNIT_STEPS = 4  # of an expert, about: finding its rows costs as much as a step


@triton.constexpr_function
def steps_per_unit(num_columns, BK):
    num_steps = triton.cdiv(num_columns, BK)
    return triton.cdiv(num_steps, triton.cdiv(num_steps, UNIT_STEPS))


@triton.jit
def _prefetch(ptrs, num_bytes):
    """Bring num_bytes (a multiple of 16) from each pointer on into L2; needs sm_90."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; // $0",
        "=r,l,r",
        [ptrs, num_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["num_rows"])
def down_concat_kernel(
    inner_ptr,  # [M * K, I], weighted
    w2_ptr,  # [E, H, I]
    w2_tma,  # descriptor of w2 as [E * H, I] in blocks [BN, BK], or None
    w2_scale_ptr,  # float32 [E, blocks of H, blocks of I], or None
    w2_bias_ptr,  # [E, H], or None
    num_active_ptr,  # int32 [1]
    experts_ptr,  # int32 [E], one per active expert
    counts_ptr,  # int32 [E], rows of each
    offsets_ptr,  # int32 [E], first row of each
    slots_ptr,  # int32 [M, K], row of inner; -1: none
    weights_ptr,  # float32 [M * K], of each row's bias, or None
    partials_ptr,  # float32 [H / BN, S, BN, BT]
    arrivals_ptr,  # int32 [H / BN], zero before and after
    out_ptr,  # [M, H]
    num_rows,  # M <= BT
    H: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    IS_PDL: tl.constexpr,
    PREFETCH: tl.constexpr,  # experts whose weights are fetched before the wait
    BT: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """out = sum over active experts of w2[expert] @ inner[their rows], as one long product.

    A token without the expert takes part with zeros, so the sum over experts happens in the
    accumulator. Grid (H / BN, S): a program owns BN columns of all rows, and every S-th unit, which
    is some steps of one expert; the last to arrive of the S adds their sums, in a fixed order.
    """
    unit_steps: tl.constexpr = steps_per_unit(I, BK)
    num_parts: tl.constexpr = triton.cdiv(I, unit_steps * BK)
    block, split, num_splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    offs_n = block * BN + tl.arange(0, BN)
    mask_n = offs_n < H
    if IS_PDL and PREFETCH > 0 and I % 16 == 0:
        # The schedule is ready: gate-up let this kernel start only after its own wait for it.
        num_units = tl.load(num_active_ptr) * num_parts
        for unit in tl.range(split, tl.minimum(num_units, num_splits * PREFETCH), num_splits):
            expert = tl.load(experts_ptr + unit // num_parts).to(tl.int64)
            start = unit % num_parts * (unit_steps * BK)
            num_columns = tl.minimum(I - start, unit_steps * BK)
            row_ptrs = w2_ptr + expert * (H * I) + tl.minimum(offs_n, H - 1) * I + start
            _prefetch(row_ptrs, num_columns * (w2_ptr.dtype.element_ty.primitive_bitwidth // 8))
    wait_and_release(IS_PDL)

    # [BT, K]
    offs_t = tl.arange(0, BT)
    offs_slot = tl.arange(0, triton.next_power_of_2(K))
    mask_slot = (offs_t < num_rows)[:, None] & (offs_slot < K)[None, :]
    slot_rows = tl.load(
        slots_ptr + offs_t[:, None] * K + offs_slot[None, :], mask=mask_slot, other=-1
    )
    offs_k = tl.arange(0, BK)
    acc = tl.zeros((BN, BT), tl.float32)
    for unit in tl.range(split, tl.load(num_active_ptr) * num_parts, num_splits, flatten=True):
        index = unit // num_parts  # of the active expert
        start = unit % num_parts * (unit_steps * BK)
        expert = tl.load(experts_ptr + index).to(tl.int64)
        first = tl.load(offsets_ptr + index)
        is_own = (slot_rows >= first) & (slot_rows < first + tl.load(counts_ptr + index))
        # [BT]: the row of inner that holds the token's share of this expert
        row = tl.max(tl.where(is_own, slot_rows, -1), axis=1)
        mask_t = row >= 0
        w_ptrs = w2_ptr + expert * (H * I) + offs_n[:, None] * I + offs_k[None, :]
        x_ptrs = inner_ptr + row.to(tl.int64)[None, :] * I + offs_k[:, None]
        first_row = (expert * H).to(tl.int32) + block * BN
        if w2_bias_ptr is not None:
            share = mask_t.to(tl.float32)
            if weights_ptr is not None:
                share = tl.load(weights_ptr + row, mask=mask_t, other=0.0)
        for step in tl.range(0, unit_steps):
            k = start + step * BK
            mask_k = k + offs_k < I
            if w2_tma is not None:
                weight = w2_tma.load([first_row, k])
            else:
                weight = tl.load(w_ptrs + k, mask=mask_n[:, None] & mask_k[None, :], other=0.0)
            x = tl.load(x_ptrs + k, mask=mask_k[:, None] & mask_t[None, :], other=0.0)
            acc = multiply(weight, x, acc, w2_scale_ptr, expert, offs_n, k, H, I, SCALE_BLOCK)
            if w2_bias_ptr is not None:  # inside the loop, or it would not be pipelined
                bias = tl.load(w2_bias_ptr + expert * H + offs_n, mask=mask_n, other=0.0)
                acc += bias.to(tl.float32)[:, None] * tl.where(k == 0, share, 0.0)[None, :]

    if num_splits > 1:
        tile = tl.arange(0, BN)[:, None] * BT + offs_t[None, :]
        tile_ptrs = partials_ptr + block * num_splits * (BN * BT) + tile
        tl.store(tile_ptrs + split * (BN * BT), acc)
        tl.debug_barrier()
        num_arrived = tl.atomic_add(arrivals_ptr + block, 1, sem="acq_rel")
        if num_arrived < num_splits - 1:
            return
        tl.store(arrivals_ptr + block, 0)
        acc = tl.zeros((BN, BT), tl.float32)
        for other in tl.range(0, num_splits, num_stages=4):
            acc += tl.load(tile_ptrs + other * (BN * BT), cache_modifier=".cg")
    tl.store(
        out_ptr + offs_t.to(tl.int64)[None, :] * H + offs_n[:, None],
        acc.to(out_ptr.dtype.element_ty),
        mask=mask_n[:, None] & (offs_t < num_rows)[None, :],
    )


@triton.jit
def down_kernel(
    inner_ptr,  # [M * K, I], weighted
    w2_ptr,  # [E, H, I]
    w2_tma,  # descriptor of w2 as [E * H, I] in blocks [BN, BK], or None
    w2_scale_ptr,  # float32 [E, blocks of H, blocks of I], or None
    w2_bias_ptr,  # [E, H], or None
    num_active_ptr,  # int32 [1]
    experts_ptr,  # int32 [E], one per active expert
    counts_ptr,  # int32 [E], rows of each
    offsets_ptr,  # int32 [E], first row of each
    weights_ptr,  # float32 [M * K], of each row's bias, or None
    products_ptr,  # float32 [M * K, H]
    H: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    E: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    IS_PDL: tl.constexpr,
    BT: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """products[row] = w2[expert] @ inner[row], for every scheduled row.

    Grid and tiles as in `gate_up_kernel`, over the columns of H.
    """
    wait_and_release(IS_PDL)
    scales_rows: tl.constexpr = w2_scale_ptr is not None and SCALE_BLOCK[1] >= I
    step_scale_ptr = None if scales_rows else w2_scale_ptr
    num_blocks: tl.constexpr = tl.cdiv(H, BN)
    ends = chunk_ends(counts_ptr, tl.load(num_active_ptr), E, BT)
    num_tiles = tl.max(ends) * num_blocks
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        index, first = find_chunk(ends, tile // num_blocks, BT)
        expert = tl.load(experts_ptr + index).to(tl.int64)
        # [BT]
        offs_t = first + tl.arange(0, BT)
        mask_t = offs_t < tl.load(counts_ptr + index)
        row = (tl.load(offsets_ptr + index) + offs_t).to(tl.int64)
        # [BN]
        offs_n = (tile % num_blocks) * BN + tl.arange(0, BN)
        mask_n = offs_n < H
        # [BN, BK], [BK, BT]
        offs_k = tl.arange(0, BK)
        w_ptrs = w2_ptr + expert * (H * I) + offs_n[:, None] * I + offs_k[None, :]
        x_ptrs = inner_ptr + row[None, :] * I + offs_k[:, None]
        first_row = (expert * H).to(tl.int32) + (tile % num_blocks) * BN
        acc = tl.zeros((BN, BT), tl.float32)
        for k in tl.range(0, I, BK):
            mask_k = k + offs_k < I
            if w2_tma is not None:
                weight = w2_tma.load([first_row, k])
            else:
                weight = tl.load(w_ptrs + k, mask=mask_n[:, None] & mask_k[None, :], other=0.0)
            x = tl.load(x_ptrs + k, mask=mask_k[:, None] & mask_t[None, :], other=0.0)
            acc = multiply(weight, x, acc, step_scale_ptr, expert, offs_n, k, H, I, SCALE_BLOCK)
        if scales_rows:
            acc = rescale(acc, w2_scale_ptr, expert, offs_n, H, SCALE_BLOCK)
        if w2_bias_ptr is not None:
            bias = tl.load(w2_bias_ptr + expert * H + offs_n, mask=mask_n, other=0.0)
            share = mask_t.to(tl.float32)
            if weights_ptr is not None:
                share = tl.load(weights_ptr + row, mask=mask_t, other=0.0)
            acc += bias.to(tl.float32)[:, None] * share[None, :]
        tl.store(
            products_ptr + row[None, :] * H + offs_n[:, None],
            acc,
            mask=mask_n[:, None] & mask_t[None, :],
        )


@triton.jit
def combine_kernel(
    products_ptr,  # float32 [M * K, H]
    slots_ptr,  # int32 [M, K], row of products; -1: none
    out_ptr,  # [M, H]
    H: tl.constexpr,
    K: tl.constexpr,
    IS_PDL: tl.constexpr,
    BN: tl.constexpr,
):
    """out[token] = sum of its rows, in the order of its slots. Grid (M, H / BN)."""
    wait_and_release(IS_PDL)
    token = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BN + tl.arange(0, BN)
    mask_n = offs_n < H
    acc = tl.zeros((BN,), tl.float32)
    for slot in tl.static_range(K):
        row = tl.load(slots_ptr + token * K + slot).to(tl.int64)
        acc += tl.load(products_ptr + row * H + offs_n, mask=mask_n & (row >= 0), other=0.0)
    tl.store(out_ptr + token * H + offs_n, acc.to(out_ptr.dtype.element_ty), mask=mask_n)
