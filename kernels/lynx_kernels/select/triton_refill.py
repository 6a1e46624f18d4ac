"""Building blocks of the selection kernels: new experts and weights for rows that lost some."""
# mypy: ignore-errors
# Device code is Triton's language, not Python's types.

import triton
import triton.language as tl

from lynx_kernels.schedule.triton_words import add_rows, bit_of, flat, gather_by
from lynx_kernels.select import policies
from lynx_kernels.select.triton_blocks import cut, fixed_mass, gate_of, is_bounded, positive

REFILL_SHARE = tl.constexpr(policies.REFILL_SHARE)
TURNS = tl.constexpr(32)  # columns of a row's refills: the lanes of a warp, K at most
TAKEN = tl.constexpr(-(2**31))  # below the key of every float


@triton.jit
def best_free(scores, bias_ptr, word_ptr, is_allowed, num_turns, LAYOUT, BLOCK_M):
    """Each row's best allowed experts that are not its own, best first: [BLOCK_M, TURNS], or -1."""
    offs_e = tl.arange(0, LAYOUT.block_experts)
    mask_e = offs_e < LAYOUT.num_experts
    offs_t = tl.arange(0, TURNS)
    word = tl.load(word_ptr + offs_e, mask=mask_e, other=0, cache_modifier=".cg")
    is_own = (word[None, :] & bit_of(tl.arange(0, BLOCK_M))[:, None]) != 0
    ranking = scores
    if bias_ptr is not None:
        ranking += tl.load(bias_ptr + offs_e, mask=mask_e, other=0.0)[None, :]
    bits = ranking.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # float order as integer order
    key = tl.where(is_allowed[None, :] & ~is_own & (scores > 0.0), key, TAKEN)
    best = tl.full([BLOCK_M, TURNS], -1, tl.int32)
    for turn in range(num_turns):
        top = tl.max(key, axis=1)
        expert = tl.min(
            tl.where(key == top[:, None], offs_e[None, :], LAYOUT.block_experts), axis=1
        )
        found = tl.where(top > TAKEN, expert, -1)
        best = tl.where((offs_t == turn)[None, :], found[:, None], best)
        key = tl.where(offs_e[None, :] == expert[:, None], TAKEN, key)
    return best


@triton.jit
def refill(ids, is_lost, scores, bias_ptr, word_ptr, is_allowed, LAYOUT, BLOCK_M):
    """Ids with lost slots re-filled, the best first; -1 where nothing is left."""
    lost = is_lost.to(tl.int32)
    turn = tl.cumsum(lost, axis=1) - lost
    num_turns = tl.max(tl.where(is_lost, turn + 1, 0))
    best = best_free(scores, bias_ptr, word_ptr, is_allowed, num_turns, LAYOUT, BLOCK_M)
    index = tl.arange(0, BLOCK_M)[:, None] * TURNS + turn
    found = tl.reshape(tl.gather(flat(best), flat(index), 0), ids.shape)
    return tl.where(is_lost, found, ids)


@triton.jit
def read_gates(scores_ptr, top, new_ids, is_own, is_lost, offs_m, LAYOUT, POLICY, SCORING):
    """Scores that set the weights of these slots, up to a factor of the row; float64."""
    is_set = is_lost
    if POLICY.weights == "scores":
        is_set = is_own
    index = offs_m[:, None] * LAYOUT.num_experts + new_ids
    mask = is_set & (new_ids >= 0)
    gates = gate_of(gather_by(scores_ptr, index, mask).to(tl.float32), top, SCORING)
    return tl.where(mask, gates, 0.0).to(tl.float64)


@triton.jit
def reweigh(weights, gates, is_own, is_lost, POLICY):
    """Weights of the rows that lost an expert, float64 inside; the others keep theirs."""
    mass = tl.where(is_own, positive(weights), 0.0).to(tl.float64)
    lost = tl.sum(tl.where(is_lost, mass, 0.0), axis=1)[:, None]
    kept = tl.sum(tl.where(is_lost, 0.0, mass), axis=1)[:, None]
    is_changed = (tl.max(is_lost.to(tl.int32), axis=1) > 0)[:, None]
    if POLICY.weights == "survivors":
        part, whole, shared = weights.to(tl.float64), kept, lost + kept
        is_set = is_changed & is_own & ~is_lost
    else:
        part, whole = gates, tl.sum(gates, axis=1)[:, None]
        if POLICY.weights == "exact":
            shared, is_set = REFILL_SHARE * lost, is_lost
        else:
            tl.static_assert(POLICY.weights == "scores", "no kernel for these weights")
            shared, is_set = lost + kept, is_changed & is_own
    fresh = (part * (shared / tl.where(whole > 0.0, whole, 1.0))).to(tl.float32)
    return tl.where(is_set & (whole > 0.0), fresh, tl.where(is_lost, 0.0, weights))


@triton.jit
def retained_share(weights, is_own, is_lost):
    """Kept own mass over own mass [BLOCK_M], 1 for rows without mass."""
    _, fixed = fixed_mass(weights, is_own)
    total = tl.sum(fixed, axis=1)
    kept = tl.sum(tl.where(is_lost, 0, fixed), axis=1)
    share = kept.to(tl.float64) / tl.maximum(total, 1).to(tl.float64)
    return tl.where(total > 0, share, 1.0).to(tl.float32)


@triton.jit
def decide(
    ids, is_own, scores, top, scores_ptr, bias_ptr, counters_ptr, word_ptr, budget, offs_m,
    LAYOUT, POLICY, SCORING, BLOCK_M,
):  # fmt: skip
    """New ids of these rows, the slots that lost theirs, and the scores that set weights."""
    is_allowed, is_kept = cut(counters_ptr, ids, is_own, budget, LAYOUT)
    is_lost = is_own & ~is_kept
    new_ids = tl.where(is_lost, -1, ids)
    if POLICY.is_refilling:
        new_ids = refill(ids, is_lost, scores, bias_ptr, word_ptr, is_allowed, LAYOUT, BLOCK_M)
        tl.debug_barrier()  # `refill` reads the words that change here
        add_rows(new_ids, is_lost & (new_ids >= 0), offs_m, word_ptr, BLOCK_M)
    tl.store(word_ptr + flat(ids), tl.full([], 0, tl.int64), mask=flat(is_lost))
    gates = read_gates(scores_ptr, top, new_ids, is_own, is_lost, offs_m, LAYOUT, POLICY, SCORING)
    return new_ids, is_lost, gates


@triton.jit
def write_rows(
    new_ids, weights, is_own, is_lost, gates, budget, share, out_ids_ptr, out_weights_ptr,
    numbers_ptr, offs_m, num_rows, LAYOUT, POLICY, BLOCK_M,
):  # fmt: skip
    """Write ids, weights and retained mass of these rows; returns the weights."""
    new_weights = weights
    retained = tl.full([BLOCK_M], 1.0, tl.float32)
    if POLICY.demand != "all":  # noqa: SIM102 (known at compile time, the next is not)
        if is_bounded(budget, share, LAYOUT, POLICY):
            new_weights = reweigh(weights, gates, is_own, is_lost, POLICY)
            retained = retained_share(weights, is_own, is_lost)
    offs_k = tl.arange(0, LAYOUT.block_slots)
    offs = offs_m[:, None] * LAYOUT.top_k + offs_k[None, :]
    mask = (offs_m < num_rows)[:, None] & (offs_k < LAYOUT.top_k)[None, :]
    retained_ptr = numbers_ptr + LAYOUT.retained_mass
    tl.store(out_ids_ptr + offs, new_ids, mask=mask)
    tl.store(out_weights_ptr + offs, new_weights, mask=mask)
    tl.store(retained_ptr + offs_m, retained.to(tl.int32, bitcast=True), mask=offs_m < num_rows)
    return new_weights
