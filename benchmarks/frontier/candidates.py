"""All measured settings: sweeps of unpublished constants, curves, free-running points."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from benchmarks.frontier.gate import Setting
from lynx_kernels import POLICIES, Policy

NEVER = 2.0  # a confidence that no row has
# Budgets as shares of the uncapped T, by floor. With a floor of 1 the union of the rows'
# strongest experts bounds T from below, at a third of the uncapped T or more.
SHARES = {0: (0.25, 0.35, 0.52), 1: (0.35, 0.52)}
SWEPT_SHARES = {1: (0.35, 0.5)}
ANSWER_SHARES = {1: (0.5,), 0: (0.3,)}
DEMANDS = (0.4, 0.5)
PUBLISHED = ("oea", "lynx-v3", "lynx-v1", "des-vote", "xshare", "sere", "topk", "random")
ANSWERED = ("oea", "xshare", "lynx-v1", "lynx-v3", "des-vote")  # free-running
BY_RANK = ("topk", "oea", "sere")
PROTECTING = ("lynx-v1", "lynx-v3", "random")  # measured with a floor alone


def constants() -> dict[str, list[Policy]]:
    """Unpublished constants of policies, as variants to choose from on validation data."""
    v1, v3, sere = (POLICIES[name] for name in ("lynx-v1", "lynx-v3", "sere"))
    return {
        "lynx-v1": [replace(v1, confidence=c) for c in (0.0, NEVER)],
        "lynx-v3": [
            replace(v3, bin_width=width, num_bins=count, confidence=c)
            for width, count, c in (
                *itertools.product((0.5, 1.0, 2.0), (3, 6), (0.0,)),
                (1.0, 6, NEVER),
            )
        ],
        "sere": [replace(sere, min_similarity=s) for s in (-1.0, 0.3)],
    }


def budget_of(share: float, uncapped: float) -> int:
    return max(1, round(share * uncapped))


def baselines(
    policy: Policy,
    top_k: int,
    uncapped: float,
    shares: Mapping[int, tuple[float, ...]] = SHARES,
) -> Iterator[Setting]:
    """A published policy's curve over its own handle: its rank, or the budget with and without
    a floor.
    """
    if policy.name in BY_RANK:
        for rank in range(1, top_k):
            yield Setting(policy, None, 0.0, rank)
        return
    for floor, each in shares.items():
        if policy.name in PROTECTING and not floor:
            continue
        for share in each:
            yield Setting(policy, budget_of(share, uncapped), None, floor)
