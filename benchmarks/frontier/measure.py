"""Quality of one setting on the decode tokens of a `Forced` run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.frontier.forced import Forced
from benchmarks.frontier.gate import Gate, Setting

DIGITS = 4  # kept of each problem's sum, which only resampling reads


def measure(
    forced: Forced,
    rows: int,
    setting: Setting,
    similarity: Sequence[Tensor] | None = None,
    contribution: Sequence[Tensor] | None = None,
) -> dict[str, Any]:
    """A setting's `figures` in steps of this many rows."""
    gate = Gate(
        setting,
        None if similarity is None else list(similarity),
        forced.steps(rows),
        contribution=None if contribution is None else list(contribution),
    )
    return figures(forced, gate)


def figures(forced: Forced, gate: Gate) -> dict[str, Any]:
    """T, KL(full || gate) in nats per token, its tail, top-1 agreement and NLL in nats.

    `kl_by_problem` and `tokens_by_problem` are sums over a problem's tokens: problems are what a
    bootstrap draws, since tokens of one answer are not independent.
    """
    counted = gate.steps.flatten()
    log_probs = forced.run(gate)[counted]
    full, targets = forced.full[counted], forced.targets[counted, None]
    kl = (full.exp() * (full - log_probs)).sum(dim=1).double().clamp(min=0)
    problem = forced.problem[counted]
    sums = torch.zeros(len(forced.tasks), dtype=torch.float64).scatter_add_(0, problem, kl)
    tails = torch.quantile(kl, torch.tensor([0.95, 0.99], dtype=torch.float64)).tolist()
    return {
        "M": gate.steps.shape[1],
        "T": gate.mean_active(),
        "tokens": len(counted),
        "kl": float(kl.mean()),
        "kl_p95": tails[0],
        "kl_p99": tails[1],
        "kl_max": float(kl.max()),
        "agreement": float((log_probs.argmax(1) == full.argmax(1)).double().mean()),
        "nll": float(-log_probs.gather(1, targets).double().mean()),
        "retained_mass": float(torch.cat([r.flatten() for r in gate.retained]).mean()),
        "kl_by_problem": [float(f"{value:.{DIGITS}g}") for value in sums.tolist()],
        "tokens_by_problem": torch.bincount(problem, minlength=len(sums)).tolist(),
    }
