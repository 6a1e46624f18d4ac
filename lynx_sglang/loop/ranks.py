"""The ranks of a replica (--tp-size): rank 0 decides, the decision rides with the batch.

Each rank holds a slice of every expert, or some experts whole (--ep-size), or slices of some. Its
output is a part of a sum over all ranks, so all must select the same experts in the same step, and
each runs those of them that it has. Hence rank 0 alone has a controller; its clock, counters,
log and store are nobody else's. The others follow, and decide nothing.

**How a decision travels.** At the top of every scheduler loop SGLang broadcasts what rank 0
received (``SchedulerRequestReceiver.recv_requests``); that is why all ranks then build the same
batch. Rank 0 lays an ``Order`` beside the requests. Every rank, rank 0 too, puts it in force when
it comes out of that call, before the loop's batch is built. So a decision belongs to the first
batch that is launched after the broadcast that carried it, on every rank and however slow one is:
made from step n, it rules step n+1, or n+2 where SGLang overlaps steps, the lag of one rank.

There is no collective of Lynx's own. A loop with nothing new to tell, an idle one above all, sends
what it did without Lynx: a size of 0. An order costs what a new request does, a payload of about a
kilobyte behind that size; with overlapped scheduling that is while the step before runs. Where
SGLang skips the broadcast (``--scheduler-recv-interval``) no order comes out: all ranks go on under
the last one, and rank 0 makes another in the next loop.

**A batch of another size** is decided for before it runs. A rank alone does so at the launch, which
is after the broadcast; rank 0 of several foresees it (``step.batch_ahead``) from what SGLang will
merge. Where a retraction, an abort or a mixed batch comes between, the step runs under a decision
for another number of rows, the same on all ranks, and is counted as unforeseen.

**What else decides.** Tiers and ``/set_internal_state`` come with the broadcast; which steps are
shadowed follows from the decisions before. What is set per process must be equal: every order
carries rank 0's ``Terms``.

**What is relied on.** The router is replicated and its input comes out of an all-reduce or
all-gather, so all ranks see the same bits and pick the same experts. Each keeps a checksum of T of
all layers and steps; an order carries rank 0's, at least every CHECK_STEPS decode steps, and a rank
that has another one raises, which ends the server.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from lynx_controller import Batch, Decision
from lynx_sglang.errors import DivergedError
from lynx_sglang.settings import Settings

CHECK_STEPS = 64  # decode steps between checks while decisions stay as they are


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings that every rank acts upon by itself."""

    policy: str
    default_tier: str
    shadowed_share: float

    @classmethod
    def of(cls, settings: Settings) -> Terms:
        return cls(*(getattr(settings, field.name) for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class Order:
    """What rank 0 tells all ranks; pickled by SGLang's broadcast."""

    decision: Decision
    floor: int
    terms: Terms
    steps: int  # decode steps that have ended
    checksum: int  # of their T


class Ranks:
    """This process among the ranks of its replica, and what it knows of their agreement."""

    def __init__(self, rank: int, size: int, ep_size: int = 1) -> None:
        self.rank, self.size, self.ep_size = rank, size, ep_size
        self.orders = 0  # that came into force
        self.checks = 0  # of them, that were compared
        self.foreseen: Batch | None = None  # by rank 0, with the last order
        self.unforeseen = 0  # steps that rank 0 had not foreseen
        self._steps = self._checksum = 0
        self._last: Order | None = None

    @classmethod
    def of_process(cls) -> Ranks:
        from sglang.srt.runtime_context import get_parallel

        parallel = get_parallel()
        return cls(parallel.tp_rank, parallel.tp_size, parallel.moe_ep_size)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def spread(self) -> str:
        """How the model lies on the ranks: what a step costs depends on it. Empty for one rank."""
        over = f", experts over {self.ep_size}" if self.ep_size > 1 else ""
        return "" if self.is_alone else f"x {self.size}{over}"

    def state(self) -> dict[str, int]:
        """For ``/server_info``."""
        names = ("size", "orders", "checks", "unforeseen")
        return {name: getattr(self, name) for name in names}

    def note_batch(self, batch: Batch) -> None:
        """On rank 0: a batch is about to run, foreseen or not."""
        self.unforeseen += batch != self.foreseen

    def note(self, step: int, num_active: Sequence[int]) -> None:
        """Add a finished decode step to the checksum: T of each layer."""
        seen = np.array([step, *num_active], dtype=np.int32)
        self._steps += 1
        self._checksum = zlib.crc32(seen.tobytes(), self._checksum)

    def order(self, decision: Decision, settings: Settings) -> Order | None:
        """What rank 0 has to tell; None where it is known and no check is due."""
        order = Order(decision, settings.floor, Terms.of(settings), self._steps, self._checksum)
        return order if self._last is None or is_news(self._last, order) else None

    def obey(self, order: Order, settings: Settings) -> None:
        """Take an order, on every rank.

        Raises:
            DivergedError: this rank is set otherwise, or has run other experts than rank 0.
        """
        own = Terms.of(settings)
        if order.terms != own:
            raise DivergedError(f"rank {self.rank} is set to {own}, and rank 0 to {order.terms}")
        if (order.steps, order.checksum) != (self._steps, self._checksum):
            raise DivergedError(
                f"rank {self.rank} has run other experts than rank 0: after {self._steps} and "
                f"{order.steps} decode steps the checksums of their active experts are "
                f"{self._checksum:08x} and {order.checksum:08x}"
            )
        self._last = order
        self.orders += 1
        self.checks += order.steps > 0


def is_news(before: Order, after: Order) -> bool:
    was, now = before.decision, after.decision
    return (
        (was.demand, was.budget, before.floor) != (now.demand, now.budget, after.floor)
        or before.terms != after.terms
        or after.steps - before.steps >= CHECK_STEPS
    )
