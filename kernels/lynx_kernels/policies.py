"""Named selection policies, as data: each implementation of `select` reads the same four answers.

Every policy goes through the same frame: the demanded experts of all rows are joined, cut to the
budget by importance, lost slots are re-filled (or not), weights are set. The frame gives the six
guarantees of kernels/README.md; a policy decides only what is demanded, who survives the cut, and
what the weights become.

Importance is summed over rows in integer fixed point: integer addition has no order, so permuting
the rows cannot change a bit, on any device. The scales below keep every sum under 2**63 for up to
MAX_ROWS rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

MAX_ROWS = 2**16
ONE = 2**40  # fixed point of a share, a score, a row's strongest weight
SCORE_MAX = 64.0  # scores above it count as it (softmax and sigmoid stay below 1)
VOTE = 2**46  # fixed point of a vote; the share that breaks ties between equal votes uses TIE_ONE
TIE_ONE = 2**29
RANK_SLACK = 1e-4  # ceil(demand * K) must not grow by float32's rounding of demand
REFILL_SHARE = 0.3  # of a row's lost mass, given to its refills: facts behind it in the README


class Demand(Enum):
    """Which of its own experts a flexible row insists on, beyond its floor."""

    ALL = "all"  # every one; the budget does not apply
    MASS = "mass"  # strongest first, until they hold the share `demand` of its top-k mass
    RANK = "rank"  # the strongest ceil(demand * K)
    NONE = "none"  # no own demand: every expert competes, whatever `demand` says


class Importance(Enum):
    """The order in which the budget keeps experts: a sum over rows, ties by lower expert id."""

    SHARE_4 = "share_4"  # (own weight / row total) ** 4, over the rows that demand the expert
    SHARE = "share"  # own weight / row total, over the rows that demand the expert
    VOTES = "votes"  # number of rows that demand the expert, then SHARE
    SCORES = "scores"  # router score, over all rows that are not pads


class Weights(Enum):
    """The weights of a row that lost an expert; every other row keeps its own bit for bit."""

    EXACT = "exact"  # survivors keep theirs; refills share REFILL_SHARE of the lost mass
    SURVIVORS = "survivors"  # survivors are scaled up to the row's total
    SCORES = "scores"  # scores of the chosen experts, scaled to the row's total


@dataclass(frozen=True, slots=True)
class Policy:
    """One point in the design space, with the paper it follows and where it departs from it."""

    name: str
    demand: Demand
    importance: Importance
    is_refilling: bool
    weights: Weights
    source: str


LYNX = Policy(
    name="lynx",
    demand=Demand.MASS,
    importance=Importance.SHARE_4,
    is_refilling=True,
    weights=Weights.EXACT,
    source=(
        "This project. After Lynx (arXiv 2411.08982): rows re-pick among the batch's experts; "
        "the row's own share threshold and the exact survivor weights are new."
    ),
)
FULL = Policy(
    name="full",
    demand=Demand.ALL,
    importance=Importance.SHARE,
    is_refilling=False,
    weights=Weights.EXACT,
    source="The control: routing as the model made it. Budget and demand do not apply, T is free.",
)
TOPK = Policy(
    name="topk",
    demand=Demand.RANK,
    importance=Importance.SHARE,
    is_refilling=False,
    weights=Weights.SURVIVORS,
    source=(
        "Per-token top-k reduction, the common baseline. Departs from it in keeping an own expert "
        "below the cut that another row keeps active, and in the budget above it."
    ),
)
OEA = Policy(
    name="oea",
    demand=Demand.RANK,
    importance=Importance.VOTES,
    is_refilling=True,
    weights=Weights.SCORES,
    source=(
        "OEA (arXiv 2511.02237), k0 = max(floor, ceil(demand * K)), whole preference list, cap at "
        "K. Departs from it in the budget (votes, then mass), in leaving untouched rows bit for "
        "bit, and in giving experts of score 0 no slot."
    ),
)
XSHARE = Policy(
    name="xshare",
    demand=Demand.NONE,
    importance=Importance.SCORES,
    is_refilling=True,
    weights=Weights.SCORES,
    source=(
        "XShare (arXiv 2602.07265): floors, then summed gate scores up to the budget, top-k again "
        "inside. `demand` is ignored. Departs from it in keeping own experts ahead of refills "
        "(the same wherever own experts have the best scores) and untouched rows bit for bit."
    ),
)

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {policy.name: policy for policy in (LYNX, FULL, TOPK, OEA, XSHARE)}
)
