"""Device code of the fused MoE: parts of all products, and gate-up with its activation.

Weights are the wide (M) operand of every product and an expert's tokens the narrow (N) one, so that
few tokens waste no weight bandwidth. H, I and E are constants of the model, hence of the kernel.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

SWIGLU_ALPHA = tl.constexpr(1.702)  # of gpt-oss
SWIGLU_LIMIT = tl.constexpr(7.0)


@triton.jit
def wait_and_release(IS_PDL: tl.constexpr):
    """Wait for the kernels before this one, then let the next one become resident."""
    if IS_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def chunk_ends(counts_ptr, num_active, E: tl.constexpr, BT: tl.constexpr):
    """[E rounded up] running number of BT-row chunks, up to and with each active expert."""
    offs_e = tl.arange(0, triton.next_power_of_2(E))
    counts = tl.load(counts_ptr + offs_e, mask=offs_e < num_active, other=0)
    return tl.cumsum(tl.cdiv(counts, BT))


@triton.jit
def find_chunk(ends, chunk, BT: tl.constexpr):
    """The active expert that a chunk belongs to, and the chunk's first row in it."""
    is_before = ends <= chunk
    first_chunk = tl.max(tl.where(is_before, ends, 0))
    return tl.sum(is_before.to(tl.int32)), (chunk - first_chunk) * BT


@triton.jit
def _activate(gate, up, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "gelu":  # tanh form: tanh(x) = 2 sigmoid(2x) - 1
        cubic = gate + 0.044715 * gate * gate * gate
        return gate * tl.sigmoid(1.5957691216057308 * cubic) * up
    else:
        tl.static_assert(ACTIVATION == "swiglu_clamped")
        gate = tl.minimum(gate, SWIGLU_LIMIT)
        up = tl.minimum(tl.maximum(up, -SWIGLU_LIMIT), SWIGLU_LIMIT)
        return gate * tl.sigmoid(gate * SWIGLU_ALPHA) * (up + 1)


@triton.jit
def scale_row_of(expert, row, N: tl.constexpr, BLOCK: tl.constexpr):
    """Row of the scales [E * blocks of N, blocks of D] of weight rows [E, N]."""
    return expert * tl.cdiv(N, BLOCK) + tl.minimum(row, N - 1) // BLOCK


@triton.jit
def multiply(
    weight,  # [BN, BK]
    x,  # [BK, BT]
    acc,  # [BN, BT]
    scale_ptr,  # float32 [E, blocks of N, blocks of D] of weights [E, N, D], or None
    expert,
    row,  # [BN], of the weights in their expert
    k,  # first column of the weights
    N: tl.constexpr,
    D: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
):
    """acc + scale * (weight @ x); without scales the sum, which `rescale` may scale once."""
    if scale_ptr is None:
        return tl.dot(weight.to(x.dtype), x, acc)
    else:
        num_scales_k: tl.constexpr = tl.cdiv(D, SCALE_BLOCK[1])
        scale_row = scale_row_of(expert, row, N, SCALE_BLOCK[0])
        scale = tl.load(scale_ptr + scale_row * num_scales_k + k // SCALE_BLOCK[1])
        return acc + tl.dot(weight.to(x.dtype), x) * scale[:, None]


@triton.jit
def rescale(acc, scale_ptr, expert, row, N: tl.constexpr, SCALE_BLOCK: tl.constexpr):
    """scale * acc [BN, BT], a product with weights of one scale per row, which is cheaper than
    scaling each step's: the tensor cores keep the sum.
    """
    return acc * tl.load(scale_ptr + scale_row_of(expert, row, N, SCALE_BLOCK[0]))[:, None]


@triton.jit
def gate_up_kernel(
    hidden_ptr,  # [M, H]
    w13_ptr,  # [E, 2I, H]
    w13_tma,  # descriptor of w13 as [E * 2I, H] in blocks [BN, BK], or None; gate rows first
    w13_scale_ptr,  # float32 [E, blocks of 2I, blocks of H], or None
    w13_bias_ptr,  # [E, 2I], or None
    num_active_ptr,  # int32 [1]
    experts_ptr,  # int32 [E], one per active expert
    counts_ptr,  # int32 [E], rows of each
    offsets_ptr,  # int32 [E], first row of each
    tokens_ptr,  # int32 [M * K], one per row
    weights_ptr,  # float32 [M * K], one per row
    inner_ptr,  # [M * K, I]
    H: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    E: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,  # gate and up rows alternate; else gate rows come first
    SCALE_BLOCK: tl.constexpr,  # rows and columns of weights that share a scale
    IS_CHUNKED: tl.constexpr,  # an expert may have more than BT rows
    IS_PDL: tl.constexpr,
    BT: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """inner[row] = weight * act(gate, up) of the row's token, for every scheduled row.

    Grid: any number of programs; they take the tiles (expert, chunk of BT rows, BN columns)
    in turn. A tile writes inner[its rows, its columns] and reads both weight rows of each column.
    """
    wait_and_release(IS_PDL)
    num_blocks: tl.constexpr = tl.cdiv(I, BN)
    scales_rows: tl.constexpr = w13_scale_ptr is not None and SCALE_BLOCK[1] >= H
    step_scale_ptr = None if scales_rows else w13_scale_ptr
    row_step: tl.constexpr = 2 if IS_INTERLEAVED else 1
    up_shift: tl.constexpr = 1 if IS_INTERLEAVED else I
    num_chunks = tl.load(num_active_ptr)
    if IS_CHUNKED:
        ends = chunk_ends(counts_ptr, num_chunks, E, BT)
        num_chunks = tl.max(ends)

    num_tiles = num_chunks * num_blocks
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        index = tile // num_blocks  # of the active expert
        first = 0
        if IS_CHUNKED:
            index, first = find_chunk(ends, index, BT)
        expert = tl.load(experts_ptr + index).to(tl.int64)
        # [BT]
        offs_t = first + tl.arange(0, BT)
        mask_t = offs_t < tl.load(counts_ptr + index)
        row = (tl.load(offsets_ptr + index) + offs_t).to(tl.int64)
        token = tl.load(tokens_ptr + row, mask=mask_t, other=0).to(tl.int64)
        weight = tl.load(weights_ptr + row, mask=mask_t, other=0.0)[None, :]
        # [BN]
        offs_n = (tile % num_blocks) * BN + tl.arange(0, BN)
        mask_n = offs_n < I
        gate_row = offs_n * row_step
        # For the descriptor, whose last block of an expert has rows of another: never stored.
        first_row = (expert * (2 * I)).to(tl.int32) + (tile % num_blocks) * BN
        # [BN, BK], [BK, BT]
        offs_k = tl.arange(0, BK)
        w_ptrs = w13_ptr + expert * (2 * I * H) + gate_row[:, None] * H + offs_k[None, :]
        x_ptrs = hidden_ptr + token[None, :] * H + offs_k[:, None]
        acc_gate = tl.zeros((BN, BT), tl.float32)
        acc_up = tl.zeros((BN, BT), tl.float32)
        for k in tl.range(0, H, BK):
            mask_k = k + offs_k < H
            mask_w = mask_n[:, None] & mask_k[None, :]
            x = tl.load(x_ptrs + k, mask=mask_k[:, None] & mask_t[None, :], other=0.0)
            if w13_tma is not None:
                gate = w13_tma.load([first_row, k])
                up = w13_tma.load([first_row + I, k])
            else:
                gate = tl.load(w_ptrs + k, mask=mask_w, other=0.0)
                up = tl.load(w_ptrs + up_shift * H + k, mask=mask_w, other=0.0)
            acc_gate = multiply(
                gate, x, acc_gate, step_scale_ptr, expert, gate_row, k, 2 * I, H, SCALE_BLOCK
            )
            up_row = gate_row + up_shift
            acc_up = multiply(
                up, x, acc_up, step_scale_ptr, expert, up_row, k, 2 * I, H, SCALE_BLOCK
            )

        if scales_rows:
            acc_gate = rescale(acc_gate, w13_scale_ptr, expert, gate_row, 2 * I, SCALE_BLOCK)
            acc_up = rescale(acc_up, w13_scale_ptr, expert, gate_row + up_shift, 2 * I, SCALE_BLOCK)
        if WEIGHS_INPUT:
            acc_gate, acc_up, weight = acc_gate * weight, acc_up * weight, 1.0
        if w13_bias_ptr is not None:
            bias_ptrs = w13_bias_ptr + expert * (2 * I) + gate_row
            acc_gate += tl.load(bias_ptrs, mask=mask_n, other=0.0)[:, None].to(tl.float32)
            acc_up += tl.load(bias_ptrs + up_shift, mask=mask_n, other=0.0)[:, None].to(tl.float32)
        inner = _activate(acc_gate, acc_up, ACTIVATION) * weight
        tl.store(
            inner_ptr + row[None, :] * I + offs_n[:, None],
            inner.to(inner_ptr.dtype.element_ty),
            mask=mask_n[:, None] & mask_t[None, :],
        )
