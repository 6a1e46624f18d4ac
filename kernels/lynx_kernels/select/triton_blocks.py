"""Building blocks of the selection kernels: what rows demand, and which experts they may use.

POLICY is the `Rules` of a policy, LAYOUT the `Layout` of the buffers. All sums that decide are
integers, so no order of addition exists.

Threads meet in scratch memory, not in shuffles: per expert an importance and flags (`counters`,
int64 [4, block_experts]), and the words of schedule/triton_words.py.
"""
# mypy: ignore-errors
# Device code is Triton's language, not Python's types.

import triton
import triton.language as tl

from lynx_kernels.schedule.triton_words import PAD, flat, gather_by, read_slots
from lynx_kernels.select import layout, policies

ONE = tl.constexpr(float(policies.ONE))
SCORE_MAX = tl.constexpr(policies.SCORE_MAX)
TIE_ONE = tl.constexpr(float(policies.TIE_ONE))
VOTE = tl.constexpr(policies.VOTE)
FEW_SCORES = tl.constexpr(layout.FEW_SCORES)
MIN_BLOCK = tl.constexpr(layout.MIN_BLOCK)
COUNT_BITS, COUNT_MASK = tl.constexpr(10), tl.constexpr(1023)  # up to MAX_EXPERTS
RANK_SLACK = tl.constexpr(policies.RANK_SLACK)
EXACT = tl.constexpr(1)  # RowClass

PROTECTED, WANTED, ALLOWED = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # rows of counters
RANK_SHIFT = tl.constexpr(48)  # above a row's fixed-point mass
RANK_ONE, MASS_BITS = tl.constexpr(1 << 48), tl.constexpr((1 << 48) - 1)
ROUNDER = tl.constexpr(2.0**52)  # adding it leaves the rounded integer in the mantissa
ROUNDER_BITS = tl.constexpr(0x4330000000000000)


@triton.jit
def rounded(x):
    """float64 in [0, 2**51] to int64, half to even."""
    return (x + ROUNDER).to(tl.int64, bitcast=True) - ROUNDER_BITS


@triton.jit
def positive(x):
    """x where it is positive and finite, else 0."""
    return tl.where((x > 0.0) & (x < float("inf")), x, 0.0)


@triton.jit
def read_share(demand_ptr):
    share = tl.full([], 1.0, tl.float64)
    if demand_ptr is not None:
        demand = tl.load(demand_ptr).to(tl.float64)
        share = tl.where(demand < 1.0, tl.where(demand > 0.0, demand, 0.0), 1.0)
    return share


@triton.jit
def is_bounded(budget, share, LAYOUT, POLICY):
    """Whether any row can lose an expert."""
    result = budget < LAYOUT.num_experts
    if POLICY.demand != "none":
        result = result | (share < 1.0)
    return result


@triton.jit
def gate_of(x, top, SCORING):
    """Router score of a value x: itself, or that of a logit x. With softmax it is up to a factor of
    the row, whose greatest logit is top.
    """
    if SCORING == "softmax":
        x = tl.exp(x - top)
    elif SCORING == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    else:
        tl.static_assert(SCORING == "none", "no kernel for this scoring")
    return positive(x)


@triton.jit
def read_scores(scores_ptr, offs_m, num_rows, LAYOUT, SCORING):
    """Router scores [BLOCK_M, block_experts], 0 where not positive and finite; and the greatest
    logit of each row [BLOCK_M, 1], which softmax needs.
    """
    offs_e = tl.arange(0, LAYOUT.block_experts)
    mask = (offs_m < num_rows)[:, None] & (offs_e < LAYOUT.num_experts)[None, :]
    offs = offs_m[:, None] * LAYOUT.num_experts + offs_e[None, :]
    if SCORING == "softmax":
        x = tl.load(scores_ptr + offs, mask=mask, other=-float("inf")).to(tl.float32)
        top = tl.where(offs_m < num_rows, tl.max(x, axis=1), 0.0)[:, None]
        x = tl.exp(x - top)
        total = tl.where(offs_m < num_rows, tl.sum(x, axis=1), 1.0)[:, None]
        scores = positive(x / total)
    else:
        x = tl.load(scores_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        top = tl.zeros_like(offs_m).to(tl.float32)[:, None]
        scores = tl.where(mask, gate_of(x, top, SCORING), 0.0)
    return scores, top


@triton.jit
def fixed_mass(weights, is_own):
    """Mass of each slot, also in fixed point of the row's strongest."""
    mass = tl.where(is_own, positive(weights), 0.0)
    peak = tl.max(mass, axis=1)[:, None].to(tl.float64)
    fixed = rounded(mass.to(tl.float64) / tl.where(peak > 0.0, peak, 1.0) * ONE)
    return mass, fixed


@triton.jit
def place_in_row(mass, fixed, is_own, BLOCK_K):
    """For each slot, the number of stronger own slots of its row, and their fixed-point mass."""
    strength = tl.where(is_own, mass.to(tl.int32, bitcast=True), -1)  # [BLOCK_M, BLOCK_K]
    offs_k = tl.arange(0, BLOCK_K)
    is_before = (offs_k[:, None] < offs_k[None, :])[:, None, :]
    # The rivals come first, so that the sum over them stays inside a thread.
    rival = tl.trans(strength)[:, :, None]  # [BLOCK_K, BLOCK_M, 1]
    rival_fixed = tl.trans(fixed + RANK_ONE)[:, :, None]
    is_stronger = (rival > strength[None]) | ((rival == strength[None]) & is_before)
    both = tl.sum(tl.where(is_stronger, rival_fixed, 0), axis=0)
    return (both >> RANK_SHIFT).to(tl.int32), both & MASS_BITS


@triton.jit
def add_demand(
    kind, ids, weights, contribution_ptr, share, floor, is_capped, counters_ptr, LAYOUT, POLICY
):
    """Scatter the experts that these rows protect, those beyond, and the mass of each."""
    is_own = (ids >= 0) & (ids < LAYOUT.num_experts)
    mass, fixed = fixed_mass(weights, is_own)
    rank, before = place_in_row(mass, fixed, is_own, LAYOUT.block_slots)
    total = tl.sum(fixed, axis=1)[:, None]
    is_protected = is_own & ((kind == EXACT) | (rank < floor))
    if POLICY.demand == "mass":
        enough = tl.where(share < 1.0, share * total.to(tl.float64), ROUNDER)
        is_wanted = before.to(tl.float64) < enough
    elif POLICY.demand == "rank":
        num_own = tl.sum(is_own.to(tl.int32), axis=1)[:, None]
        is_wanted = rank.to(tl.float64) < share * num_own.to(tl.float64) - RANK_SLACK
    else:
        is_free: tl.constexpr = POLICY.demand == "none" or POLICY.demand == "all"
        tl.static_assert(is_free, "no kernel for this demand")
        is_wanted = rank < 0
    is_wanted = is_wanted & is_own & ~is_protected
    flag = flat(ids + tl.where(is_protected, PROTECTED, WANTED) * LAYOUT.block_experts)
    tl.store(counters_ptr + flag, tl.full([], 1, tl.int64), mask=flat(is_protected | is_wanted))
    if POLICY.importance != "scores":  # noqa: SIM102 (known at compile time, the next is not)
        if is_capped:
            part = fixed.to(tl.float64) / tl.maximum(total, 1).to(tl.float64)
            if POLICY.importance == "share_6":
                square = part * part
                part = square * square * square
                if contribution_ptr is not None:
                    gain = gather_by(contribution_ptr, ids, is_wanted).to(tl.float64)
                    part = part * tl.where((gain >= 0.0) & (gain <= 1.0), gain, 1.0)
                vote = rounded(part * ONE)
            elif POLICY.importance == "share":
                vote = rounded(part * ONE)
            else:
                tl.static_assert(POLICY.importance == "votes", "no kernel for this importance")
                vote = rounded(part * TIE_ONE) + VOTE
            mask = flat(is_wanted)
            tl.atomic_add(counters_ptr + flat(ids), flat(vote), mask=mask, sem="relaxed")


@triton.jit
def add_scores(scores, row_class_ptr, offs_m, num_rows, counters_ptr, LAYOUT):
    """Importance by score: every expert is wanted, by all rows that are not pads."""
    offs_e = tl.arange(0, LAYOUT.block_experts)
    mask = offs_e < LAYOUT.num_experts
    is_live = tl.load(row_class_ptr + offs_m, mask=offs_m < num_rows, other=PAD) != PAD
    counted = tl.where(is_live[:, None], tl.minimum(scores, SCORE_MAX), 0.0)
    sums = tl.sum(rounded(counted.to(tl.float64) * ONE), axis=0)
    tl.atomic_add(counters_ptr + offs_e, sums, mask=mask, sem="relaxed")
    wanted_ptr = counters_ptr + WANTED * LAYOUT.block_experts
    tl.store(wanted_ptr + offs_e, tl.full([], 1, tl.int64), mask=mask)


@triton.jit
def add_all_demand(
    scores_ptr, ids_ptr, weights_ptr, row_class_ptr, contribution_ptr, share, floor, is_capped,
    counters_ptr, first_row, end_row, LAYOUT, POLICY, SCORING, BLOCK_M, BLOCK_R,
):  # fmt: skip
    """Add the demand of the rows from `first_row` to `end_row` to the counters."""
    for start in tl.range(first_row, end_row, BLOCK_R):
        offs_r = start + tl.arange(0, BLOCK_R)
        kind, ids, weights = read_slots(
            ids_ptr, weights_ptr, row_class_ptr, offs_r, end_row, LAYOUT.top_k, LAYOUT.block_slots
        )
        add_demand(
            kind, ids, weights, contribution_ptr, share, floor, is_capped, counters_ptr,
            LAYOUT, POLICY,
        )  # fmt: skip
    if POLICY.importance == "scores":
        for start in tl.range(first_row, end_row, BLOCK_M):
            offs_m = start + tl.arange(0, BLOCK_M)
            scores, _ = read_scores(scores_ptr, offs_m, end_row, LAYOUT, SCORING)
            add_scores(scores, row_class_ptr, offs_m, end_row, counters_ptr, LAYOUT)


@triton.jit
def read_flags(counters_ptr, FLAG, offs, BLOCK_E):
    return tl.load(counters_ptr + FLAG * BLOCK_E + offs, cache_modifier=".cg") != 0


@triton.jit
def read_slot_flags(counters_ptr, FLAG, ids, is_own, BLOCK_E):
    return gather_by(counters_ptr + FLAG * BLOCK_E, ids, is_own) != 0


@triton.jit
def read_contest(counters_ptr, offs, BLOCK_E):
    """Importance of the experts that compete, -1 for others."""
    is_protected = read_flags(counters_ptr, PROTECTED, offs, BLOCK_E)
    is_wanted = read_flags(counters_ptr, WANTED, offs, BLOCK_E)
    importance = tl.load(counters_ptr + offs, cache_modifier=".cg")
    return tl.where(is_wanted & ~is_protected, importance, -1)


@triton.jit
def write_winners(counters_ptr, room, BLOCK_E, NUM_PAIRS):
    """Flag the first `room` of the experts that compete, by importance, ties by id.

    All pairs are compared, NUM_PAIRS at a time. Rivals lie across the lanes of a warp, so a rank is
    the sum of one warp.
    """
    BLOCK_I: tl.constexpr = min(BLOCK_E, NUM_PAIRS // BLOCK_E)
    lane = tl.arange(0, 32)[None, None, None, :]
    offs_j = tl.arange(0, BLOCK_E // 32)[:, None, None, None] + (BLOCK_E // 32) * lane
    rival = read_contest(counters_ptr, offs_j, BLOCK_E)  # [BLOCK_E / 32, 1, 1, 32]
    warp = tl.arange(0, 16)[None, None, :, None]
    offs_i = tl.arange(0, BLOCK_I // 16)[None, :, None, None] + (BLOCK_I // 16) * warp
    for start in tl.range(0, BLOCK_E, BLOCK_I):
        mine = read_contest(counters_ptr, start + offs_i, BLOCK_E)  # [1, BLOCK_I / 16, 16, 1]
        is_ahead = (rival > mine) | ((rival == mine) & (offs_j < start + offs_i))
        rank = tl.sum(tl.sum(is_ahead.to(tl.int32), axis=0), axis=2)[None, :, :, None]
        is_in = (mine >= 0) & (rank < room)
        tl.store(counters_ptr + ALLOWED * BLOCK_E + start + offs_i, is_in.to(tl.int64))


@triton.jit
def write_winners_of_many(counters_ptr, room, BLOCK_E):
    """As `write_winners`, for experts whose pairs are too many.

    The least importance that wins is found two bits at a time, from the highest, until as many
    experts reach it as there is room for. Three counts share a word, so a turn costs one sum.
    """
    offs_e = tl.arange(0, BLOCK_E)
    mine = read_contest(counters_ptr, offs_e, BLOCK_E)
    # The exponent is negative where every importance is 0.
    exponent = (tl.max(mine, axis=0).to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1023
    shift = (exponent >> 1) << 1
    least = tl.full([], 0, tl.int64)
    num_reached = tl.sum((mine >= 0).to(tl.int32), axis=0)
    while (shift >= 0) & (num_reached > room):
        steps = (mine - least) >> shift
        reach = (steps >= 1).to(tl.int32)
        reach += (steps >= 2).to(tl.int32) << COUNT_BITS
        reach += (steps >= 3).to(tl.int32) << (2 * COUNT_BITS)
        counts = tl.sum(reach, axis=0)
        first, second = counts & COUNT_MASK, (counts >> COUNT_BITS) & COUNT_MASK
        third = counts >> (2 * COUNT_BITS)
        num_reached = tl.where(first >= room, first, num_reached)
        num_reached = tl.where(second >= room, second, num_reached)
        num_reached = tl.where(third >= room, third, num_reached)
        digit = (first >= room).to(tl.int64) + (second >= room).to(tl.int64)
        least += (digit + (third >= room).to(tl.int64)) << shift
        shift -= 2
    is_tied = mine == least
    is_above = mine > least
    num_left = room - tl.sum(is_above.to(tl.int32), axis=0)
    is_in = is_above | (is_tied & (tl.cumsum(is_tied.to(tl.int32), axis=0) <= num_left))
    tl.store(counters_ptr + ALLOWED * BLOCK_E + offs_e, (is_in & (room > 0)).to(tl.int64))


@triton.jit
def cut(counters_ptr, ids, is_own, budget, LAYOUT):
    """Experts [block_experts] that rows may use: protected ones, then by importance up to the
    budget; and the slots that keep theirs.
    """
    BLOCK_E: tl.constexpr = LAYOUT.block_experts
    offs_e = tl.arange(0, BLOCK_E)
    is_protected = read_flags(counters_ptr, PROTECTED, offs_e, BLOCK_E)
    is_contest = read_flags(counters_ptr, WANTED, offs_e, BLOCK_E) & ~is_protected
    is_own_protected = read_slot_flags(counters_ptr, PROTECTED, ids, is_own, BLOCK_E)
    is_kept = is_own_protected | read_slot_flags(counters_ptr, WANTED, ids, is_own, BLOCK_E)
    is_allowed = is_protected | is_contest
    sizes = tl.sum(is_contest.to(tl.int32) + (is_protected.to(tl.int32) << 16), axis=0)
    room = tl.maximum(budget - (sizes >> 16), 0)
    if (sizes & 0xFFFF) > room:
        if BLOCK_E > MIN_BLOCK:
            write_winners_of_many(counters_ptr, room, BLOCK_E)
        else:
            # Eight warps have registers for more pairs than sixteen.
            NUM_PAIRS: tl.constexpr = 16384 if ids.shape[0] * BLOCK_E <= FEW_SCORES else 8192
            write_winners(counters_ptr, room, BLOCK_E, NUM_PAIRS)
        tl.debug_barrier()
        is_allowed = is_protected | read_flags(counters_ptr, ALLOWED, offs_e, BLOCK_E)
        is_kept = is_own_protected | read_slot_flags(counters_ptr, ALLOWED, ids, is_own, BLOCK_E)
    return is_allowed, is_kept
