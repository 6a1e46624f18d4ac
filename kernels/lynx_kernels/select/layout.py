"""Memory layout of a selection on a GPU: the one derivation of every offset.

Kernels take a `Layout` as a compile-time constant; the host cuts its views by the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

from lynx_kernels.select.limits import MAX_EXPERTS, MAX_FUSED_ROWS, MAX_TOP_K
from lynx_kernels.select.policies import MAX_ROWS

HEAD = 4  # words of `numbers` before the lists: 16 bytes
HEADER = 16  # entries of `scratch` before the words: 128 bytes
COUNTERS = 4  # per expert: importance, protected, wanted, allowed
MIN_BLOCK = 128  # experts of a block, so that a row is all of a warp's lanes
MIN_ROWS, MAX_WORD_ROWS = 8, 64  # rows of a program: one per warp, one per bit of a word
MAX_SCORES = 8192  # of a program: 16 registers of each thread
MAX_DEMAND_SLOTS = 1024  # whose demand a program counts at a time
FEW_SCORES = 4096  # up to here eight warps, above sixteen


def power_of_2(size: int) -> int:
    """The next power of two."""
    return 1 << max(size - 1, 0).bit_length()


@dataclass(frozen=True, slots=True)
class SelectTiles:
    """Shape of the launches for a number of rows. Not measured yet."""

    rows: int  # rows that a program decides for
    demand_rows: int  # rows whose demand a program counts at a time
    scheduled_rows: int  # rows that the last program of one launch schedules: all
    num_programs: int
    num_warps: int

    @classmethod
    def of(cls, num_rows: int, num_experts: int, top_k: int) -> SelectTiles:
        block = max(MIN_BLOCK, power_of_2(num_experts))
        rows = min(MAX_WORD_ROWS, MAX_SCORES // block, max(MIN_ROWS, power_of_2(num_rows)))
        num_programs = max(1, -(-num_rows // rows))
        demand_rows = min(power_of_2(num_rows), MAX_DEMAND_SLOTS // power_of_2(top_k))
        return cls(
            rows=rows,
            demand_rows=demand_rows if num_programs > 1 else rows,
            scheduled_rows=power_of_2(num_programs * rows),
            num_programs=num_programs,
            num_warps=8 if rows * block <= FEW_SCORES else 16,
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a selection, and where each array starts.

    `numbers`, int32 (S = num_scheduled, R = max_rows, K = top_k):

        num_active [1] | num_listed [1] | unused [2]       T, experts in the schedule
        retained_mass [R]                                  float32; at one place whatever S is
        experts [S] | counts [S] | offsets [S]             of the schedule
        tokens [R K] | weights [R K] | slots [R K]         of the schedule; weights are float32

    `scratch`, int64 (P programs at most, F of them in one launch):

        ticket [1] | unused [15]                           0 between launches
        words [P, ids] | words_before [P, ids]             bit r: row r of the program uses the id
        counters [F, 4, experts]                           importance, protected, wanted, allowed
        shared_counters [4, experts] | used [experts]      of several launches; 0 between them

    An id is that of a routed expert or of any scheduled one; ids and experts are rounded up to
    blocks of a power of two.
    """

    max_rows: int  # R
    top_k: int  # K
    num_experts: int  # E, routed
    first_expert: int = 0  # id of the schedule's first
    num_scheduled: int = 0  # S, experts in the schedule, 0 for none

    def __post_init__(self) -> None:
        for name, size, most in (
            ("max_rows", self.max_rows, MAX_ROWS),
            ("top_k", self.top_k, MAX_TOP_K),
            ("num_experts", self.num_experts, MAX_EXPERTS),
            ("first_expert + num_scheduled", self.end_expert or 1, 2 * MAX_EXPERTS),
        ):
            if not 1 <= size <= most:
                raise ValueError(f"{name}: expected 1 to {most}, got {size}")

    @property
    def end_expert(self) -> int:
        return self.first_expert + self.num_scheduled

    @property
    def num_ids(self) -> int:
        return max(self.num_experts, self.end_expert)

    # ------------------------------------------------------------------ blocks

    @property
    def block_slots(self) -> int:
        return power_of_2(self.top_k)

    @property
    def block_experts(self) -> int:
        return max(MIN_BLOCK, power_of_2(self.num_experts))

    @property
    def block_ids(self) -> int:
        return max(MIN_BLOCK, power_of_2(self.num_ids))

    # ------------------------------------------------------------------ numbers

    @property
    def num_slots(self) -> int:
        return self.max_rows * self.top_k

    @property
    def retained_mass(self) -> int:
        return HEAD

    @property
    def experts(self) -> int:
        return self.retained_mass + self.max_rows

    @property
    def counts(self) -> int:
        return self.experts + self.num_scheduled

    @property
    def offsets(self) -> int:
        return self.counts + self.num_scheduled

    @property
    def tokens(self) -> int:
        return self.offsets + self.num_scheduled

    @property
    def weights(self) -> int:
        return self.tokens + self.num_slots

    @property
    def slots(self) -> int:
        return self.weights + self.num_slots

    @property
    def num_numbers(self) -> int:
        return self.slots + self.num_slots

    # ------------------------------------------------------------------ scratch

    @property
    def num_fused_programs(self) -> int:
        """Programs of the largest batch that takes one launch; each has counters."""
        return self._tiles(min(self.max_rows, MAX_FUSED_ROWS)).num_programs

    @property
    def max_programs(self) -> int:
        return max(self.num_fused_programs, self._tiles(self.max_rows).num_programs)

    def _tiles(self, num_rows: int) -> SelectTiles:
        return SelectTiles.of(num_rows, self.num_experts, self.top_k)

    @property
    def words(self) -> int:
        return HEADER

    @property
    def words_before(self) -> int:
        return self.words + self.max_programs * self.block_ids

    @property
    def counters(self) -> int:
        return self.words_before + self.max_programs * self.block_ids

    @property
    def num_counters(self) -> int:
        """Of one program, or of several launches together."""
        return COUNTERS * self.block_experts

    @property
    def shared_counters(self) -> int:
        return self.counters + self.num_fused_programs * self.num_counters

    @property
    def used(self) -> int:
        return self.shared_counters + self.num_counters

    @property
    def num_scratch(self) -> int:
        is_shared = self.max_rows > MAX_FUSED_ROWS
        return self.used + self.block_experts if is_shared else self.shared_counters
