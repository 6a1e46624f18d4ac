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

A loop without news sends the same as without Lynx: a size of 0. An order costs as much as a new
request, about a kilobyte, and with overlapped scheduling it travels while the step before runs.
Where SGLang skips the broadcast (``--scheduler-recv-interval``), all ranks go on under the last
order, and rank 0 makes another in the next loop.

**Batches of a new size** are decided for before they run. A rank alone decides at the launch. Rank
0 of several must decide before the broadcast: it predicts the batch that SGLang will merge
(``step.batch_ahead``). After a retraction, an abort or a mixed batch the prediction is wrong: the
step runs under a decision for another batch, the same on all ranks, and is counted as unforeseen.

**Other inputs.** Tiers and ``/set_internal_state`` come with the broadcast. The sample of shadowed
steps follows from earlier decisions. Settings of a process must be equal on all ranks: every order
carries rank 0's ``Terms``.

**Agreement.** The router is replicated and its input comes out of an all-reduce or all-gather. All
ranks should see the same bits and select the same experts; no collective promises it. Each rank
keeps a checksum of T over layers and steps. Every CHECK_STEPS decode steps an order carries rank
0's, and the ranks ask each other whether any differs: one byte, over SGLang's CPU group. After a
mismatch all of them run every row's own experts, as plain SGLang would, until a check agrees. The
server stops when PATIENCE checks in a row differ.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from lynx_controller import Batch, Decision
from lynx_sglang.errors import DivergedError
from lynx_sglang.settings import Settings

logger = logging.getLogger(__name__)

CHECK_STEPS = 32  # decode steps between checks
PATIENCE = 3  # checks in a row that may not all differ


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
    checksum: int  # of T in the steps since the last check


class Ranks:
    """This process's place among the ranks of its replica, and its side of their agreement."""

    def __init__(
        self,
        rank: int,
        size: int,
        ep_size: int = 1,
        is_any: Callable[[bool], bool] = bool,
        replica: int | None = None,
    ) -> None:
        """
        Args:
            is_any: whether any rank says yes; all ranks ask at once.
            replica: number of this replica in its server (--dp-size); None without replicas.
        """
        self.rank, self.size, self.ep_size, self.replica = rank, size, ep_size, replica
        self._is_any = is_any
        self.orders = 0  # put in force
        self.checks = 0  # orders whose checksum was compared
        self.mismatches = 0  # checks in which ranks differed
        self._in_a_row = 0  # of the last checks
        self.foreseen: Batch | None = None  # on rank 0, with the last order
        self.unforeseen = 0  # steps with another batch than foreseen
        self._steps = self._checksum = self._checked_at = 0
        self._last: Order | None = None

    @classmethod
    def of_process(cls) -> Ranks:
        from sglang.srt.runtime_context import get_parallel

        parallel = get_parallel()
        return cls(
            parallel.tp_rank,
            parallel.tp_size,
            parallel.moe_ep_size,
            is_any_rank,
            parallel.dp_rank,
        )

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def is_parted(self) -> bool:
        """The last check found ranks that ran other experts than rank 0; the same on all ranks."""
        return self._in_a_row > 0

    @property
    def spread(self) -> str:
        """Layout of the model over the ranks, which step costs depend on; empty for one rank."""
        over = f", experts over {self.ep_size}" if self.ep_size > 1 else ""
        return "" if self.is_alone else f"x {self.size}{over}"

    def state(self) -> dict[str, int | None]:
        """For ``/server_info``."""
        names = ("replica", "size", "orders", "checks", "mismatches", "unforeseen")
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
        is_news = self._last is None or changes(self._last, order)
        return order if is_news or self._is_check(order) else None

    def _is_check(self, order: Order) -> bool:
        return order.steps - self._checked_at >= CHECK_STEPS

    def obey(self, order: Order, settings: Settings) -> None:
        """Check and count an order, on every rank.

        Raises:
            DivergedError: settings of this rank differ from rank 0's, or the experts of a rank do,
                check after check.
        """
        own = Terms.of(settings)
        if order.terms != own:
            raise DivergedError(f"rank {self.rank} is set to {own}, rank 0 to {order.terms}")
        if self._is_check(order):
            self._check(order)
        self._last = order
        self.orders += 1

    def _check(self, order: Order) -> None:
        differs = (order.steps, order.checksum) != (self._steps, self._checksum)
        is_parted = self._is_any(differs)
        if differs:
            logger.warning(
                "rank %d has run other experts than rank 0: after %d and %d decode steps the "
                "checksums of their active experts are %08x and %08x",
                self.rank, self._steps, order.steps, self._checksum, order.checksum,
            )  # fmt: skip
        self.checks += 1
        self.mismatches += is_parted
        self._in_a_row = self._in_a_row + 1 if is_parted else 0
        if self._in_a_row >= PATIENCE:
            raise DivergedError(
                f"ranks have run other experts than rank 0 in {PATIENCE} checks in a row, the last "
                f"after {order.steps} decode steps. Their logs name them"
            )
        if self._in_a_row == 1:
            logger.warning(
                "ranks have run other experts than rank 0: full quality until they agree"
            )
        self._checked_at, self._checksum = order.steps, 0


def changes(before: Order, after: Order) -> bool:
    """Whether ranks under ``before`` need ``after`` for what it puts in force."""
    was, now = before.decision, after.decision
    return (was.demand, was.budget, before.floor, before.terms) != (
        now.demand, now.budget, after.floor, after.terms,
    )  # fmt: skip


def is_any_rank(answer: bool) -> bool:
    """Whether any rank of this replica says yes: a collective, over the group of SGLang's own."""
    from sglang.srt.runtime_context import get_parallel

    answers = torch.tensor([answer], dtype=torch.uint8)
    torch.distributed.all_reduce(
        answers, torch.distributed.ReduceOp.MAX, group=get_parallel().tp_group.cpu_group
    )
    return bool(answers.item())
