"""Named selection policies, as data: each implementation of `select` reads the same four answers.

Every policy goes through the same frame: the demanded experts of all rows are joined, cut to the
budget by importance, lost slots are re-filled (or not), weights are set. The frame gives the six
guarantees of kernels/README.md. A policy decides on the demand, the importance and the weights.

Importance is summed over rows in integer fixed point: integer addition has no order, so permuting
the rows cannot change a bit, on any device. The scales below keep every sum under 2**63 for up to
MAX_ROWS rows.
"""

from __future__ import annotations

import math
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
REFILL_SHARE = 0.3  # of a row's lost mass, given to its refills
HASH_FACTOR, HASH_MASK = 1_103_515_245, 2**32 - 1  # noise of float32 bits: multiply, mask, shift
HASH_SHIFT = 8


class Demand(Enum):
    """Own experts that a flexible row insists on, beyond its floor."""

    ALL = "all"  # every one; the budget does not apply
    MASS = "mass"  # strongest first, until they hold the share `demand` of its top-k mass
    RANK = "rank"  # the strongest ceil(demand * K)
    NONE = "none"  # no own demand: every expert competes, whatever `demand` says


class Importance(Enum):
    """The order in which the budget keeps experts: a sum over rows, ties by lower expert id."""

    # (own weight / row total) ** 6, over the rows that demand the expert, times its contribution.
    SHARE_6 = "share_6"
    SHARE = "share"  # own weight / row total, over the rows that demand the expert
    VOTES = "votes"  # number of rows that demand the expert, then SHARE
    SCORES = "scores"  # router score, over all rows that are not pads
    BINS = "bins"  # votes of all rows that are not pads, by distance from the row's best score
    HASH = "hash"  # noise that follows from the scores of all rows that are not pads


class Weights(Enum):
    """The weights of a row that lost an expert; every other row keeps its own bit for bit."""

    EXACT = "exact"  # survivors keep theirs; refills share REFILL_SHARE of the lost mass
    SURVIVORS = "survivors"  # survivors are scaled up to the row's total
    SCORES = "scores"  # scores of the chosen experts, scaled to the row's total
    MOVED = "moved"  # a lost weight goes to the demanded expert that is most similar


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy as the GPU kernels take it, at compile time: policies of equal rules share one."""

    demand: str
    importance: str
    weights: str
    is_refilling: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """One point in the design space, with the paper it follows and where it departs from it."""

    name: str
    demand: Demand
    importance: Importance
    is_refilling: bool
    weights: Weights
    source: str
    confidence: float = 0.0  # a row has a floor if its strongest expert holds this share of mass
    bin_width: float = 1.0  # BINS: natural logarithm of score ratios
    num_bins: int = 1  # BINS: scores further from the row's best have no vote
    min_similarity: float = 0.0  # MOVED: experts that are less similar to all demanded ones stay

    @property
    def rules(self) -> Rules:
        return Rules(
            demand=self.demand.value,
            importance=self.importance.value,
            weights=self.weights.value,
            is_refilling=self.is_refilling,
        )

    @property
    def has_triton_form(self) -> bool:
        """Whether the GPU kernels run it; False for policies that only comparisons need."""
        is_known = self.importance not in (Importance.BINS, Importance.HASH)
        return is_known and not self.needs_similarity and self.confidence == 0.0

    @property
    def needs_similarity(self) -> bool:
        return self.weights is Weights.MOVED

    @property
    def takes_contribution(self) -> bool:
        return self.importance is Importance.SHARE_6

    @property
    def bin_edges(self) -> tuple[float, ...]:
        """Ratios to the row's best score at which bins end, falling."""
        return tuple(math.exp(-self.bin_width * (j + 1)) for j in range(self.num_bins))

    @property
    def max_vote_base(self) -> int:
        """BINS: bound of the base of votes, so that their sums stay under 2**63."""
        return 1 << 46 // max(self.num_bins - 1, 1)


LYNX = Policy(
    name="lynx",
    demand=Demand.MASS,
    importance=Importance.SHARE_6,
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

LYNX_V1 = Policy(
    name="lynx-v1",
    demand=Demand.RANK,
    importance=Importance.VOTES,
    is_refilling=True,
    weights=Weights.SCORES,
    confidence=0.0,
    source=(
        "Lynx, first version (arXiv 2411.08982 v1), as others describe it: the experts with the "
        "fewest votes go, rows re-pick, confident rows keep their top expert. `confidence` is not "
        "published: the best of a sweep. Demand 1; a lower one votes with fewer experts."
    ),
)
LYNX_V3 = Policy(
    name="lynx-v3",
    demand=Demand.NONE,
    importance=Importance.BINS,
    is_refilling=True,
    weights=Weights.SCORES,
    confidence=0.0,
    bin_width=0.5,
    num_bins=3,
    source=(
        "Lynx AffinityBinning (arXiv 2411.08982 v3): a vote in one bin outweighs those of all "
        "rows in the next. Bin width and count, the confidence and the cut-off are not published: "
        "the best of a sweep, and the budget. `demand` is ignored. Departs from it in keeping own "
        "experts ahead of refills; for a sigmoid router, score ratios stand for logit differences."
    ),
)
DES_VOTE = Policy(
    name="des-vote",
    demand=Demand.RANK,
    importance=Importance.SHARE,
    is_refilling=True,
    weights=Weights.SCORES,
    source=(
        "DES-Vote: each row's top-k weights summed, the best experts stay, every row re-picks K. "
        "Without a floor in the paper; demand 1, a lower one sums fewer experts."
    ),
)
SERE = Policy(
    name="sere",
    demand=Demand.RANK,
    importance=Importance.SHARE,
    is_refilling=False,
    weights=Weights.MOVED,
    min_similarity=-1.0,
    source=(
        "SERE (arXiv 2602.07616), S = max(floor, ceil(demand * K)): weights outside the union of "
        "the rows' top S move to its most similar expert, or stay if none is similar. Needs "
        "`similarity`. Departs from it in adding up weights that meet in one expert (the same "
        "output, distinct experts) and in the budget, above which dissimilar experts move too."
    ),
)
RANDOM = Policy(
    name="random",
    demand=Demand.RANK,
    importance=Importance.HASH,
    is_refilling=True,
    weights=Weights.SCORES,
    source="The control: experts of the rows stay by chance, drawn anew from each step's scores.",
)

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (LYNX, FULL, TOPK, OEA, XSHARE, LYNX_V1, LYNX_V3, DES_VOTE, SERE, RANDOM)
    }
)


def policies_for_triton() -> tuple[str, ...]:
    """Names of the policies that the GPU kernels run; the others are for comparison."""
    return tuple(name for name, policy in POLICIES.items() if policy.has_triton_form)
