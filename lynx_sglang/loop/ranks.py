"""The ranks of a replica (--tp-size): rank 0 decides, and its decision travels with the batch.

A rank holds a slice of every expert, or some experts whole (--ep-size), or slices of some. Its
output is one term of a sum over all ranks. Hence all ranks must select the same experts in the same
step, and each runs those that it holds. Rank 0 alone has a controller, clock, counters, log and
store. The other ranks follow.

**Transport.** At the top of every scheduler loop SGLang broadcasts the requests that rank 0
received (``SchedulerRequestReceiver.recv_requests``), so that all ranks build the same batch. Rank
0 adds an ``Order`` to the requests. Every rank, rank 0 too, puts it in force when that call
returns, before the loop's batch is built. A decision therefore applies to the first batch launched
after its broadcast, on every rank. Made from step n, it applies to step n+1, or to n+2 where SGLang
overlaps steps: the lag of a single rank.

Lynx has no collective of its own. A loop without news sends the same as without Lynx: a size of 0.
An order costs as much as a new request, about a kilobyte, and with overlapped scheduling it travels
while the step before runs. Where SGLang skips the broadcast (``--scheduler-recv-interval``), all
ranks go on under the last order, and rank 0 makes another in the next loop.

**Batches of a new size** are decided for before they run. A rank alone decides at the launch. Rank
0 of several must decide before the broadcast: it predicts the batch that SGLang will merge
(``step.batch_ahead``). After a retraction, an abort or a mixed batch the prediction is wrong: the
step runs under a decision for another batch, the same on all ranks, and is counted as unforeseen.

**Other inputs.** Tiers and ``/set_internal_state`` come with the broadcast. The sample of shadowed
steps follows from earlier decisions. Settings of a process must be equal on all ranks: every order
carries rank 0's ``Terms``.

**Agreement.** The router is replicated and its input comes out of an all-reduce or all-gather. All
ranks see the same bits and select the same experts. Each rank keeps a checksum of T over layers and
steps. At least every CHECK_STEPS decode steps an order carries rank 0's; a mismatch stops the
server.
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
    """Settings that every rank applies by itself, and that must be equal."""

    policy: str
    default_tier: str
    shadowed_share: float

    @classmethod
    def of(cls, settings: Settings) -> Terms:
        return cls(*(getattr(settings, field.name) for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class Order:
    """Rank 0's message to all ranks; SGLang's broadcast pickles it."""

    decision: Decision
    floor: int
    terms: Terms
    steps: int  # decode steps ended so far
    checksum: int  # of T in those steps


class Ranks:
    """This process's place among the ranks of its replica, and its side of their agreement."""

    def __init__(self, rank: int, size: int, ep_size: int = 1) -> None:
        self.rank, self.size, self.ep_size = rank, size, ep_size
        self.orders = 0  # put in force
        self.checks = 0  # orders whose checksum was compared
        self.foreseen: Batch | None = None  # on rank 0, with the last order
        self.unforeseen = 0  # steps with another batch than foreseen
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
        """Layout of the model over the ranks, which step costs depend on; empty for one rank."""
        over = f", experts over {self.ep_size}" if self.ep_size > 1 else ""
        return "" if self.is_alone else f"x {self.size}{over}"

    def state(self) -> dict[str, int]:
        """For ``/server_info``."""
        names = ("size", "orders", "checks", "unforeseen")
        return {name: getattr(self, name) for name in names}

    def note_batch(self, batch: Batch) -> None:
        """On rank 0: count a batch that is about to run and was not foreseen."""
        self.unforeseen += batch != self.foreseen

    def note(self, step: int, num_active: Sequence[int]) -> None:
        """Add a finished decode step to the checksum: T of each layer."""
        seen = np.array([step, *num_active], dtype=np.int32)
        self._steps += 1
        self._checksum = zlib.crc32(seen.tobytes(), self._checksum)

    def order(self, decision: Decision, settings: Settings) -> Order | None:
        """Rank 0's next order; None if nothing changed and no check is due."""
        order = Order(decision, settings.floor, Terms.of(settings), self._steps, self._checksum)
        return order if self._last is None or is_news(self._last, order) else None

    def obey(self, order: Order, settings: Settings) -> None:
        """Check and count an order, on every rank.

        Raises:
            DivergedError: settings or experts of this rank differ from rank 0's.
        """
        own = Terms.of(settings)
        if order.terms != own:
            raise DivergedError(f"rank {self.rank} is set to {own}, rank 0 to {order.terms}")
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
    """Whether ranks under ``before`` need ``after``: it changes something, or a check is due."""
    was, now = before.decision, after.decision
    return (
        (was.demand, was.budget, before.floor) != (now.demand, now.budget, after.floor)
        or before.terms != after.terms
        or after.steps - before.steps >= CHECK_STEPS
    )
