"""Shadow passes: a sample of decode steps also runs with every expert, to measure the difference.

The batch of a sampled step runs twice, with every expert first. The served pass then writes the
same KV slots, layer by layer and before it reads them. Nothing of the full pass remains, so the
served tokens are those of a step without a shadow. Both passes read the same context: the
comparison covers one step, and earlier caps affected the KV cache of both.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import torch

from lynx_kernels import RowClass

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
# Upper bounds of the histogram of a row's KL, in nats: 1, 2, 5 per decade.
KL_BUCKETS = tuple(float(f"{digit}e{power}") for power in range(-6, 1) for digit in (1, 2, 5))


def is_sampled(count: int, share: float) -> bool:
    """Whether capped step number ``count``, from 0, belongs to the sample of ``share`` in [0, 1].

    Multiples of the golden ratio modulo 1 are evenly spread at every scale and have no period. So
    no rhythm of the traffic escapes the sample, and every run samples the same steps.
    """
    return count * GOLDEN % 1.0 < share


@dataclass(slots=True)
class Sampler:
    """Counts the capped decode steps and samples a share of them."""

    count: int = 0

    def pick(self, share: float) -> bool:
        self.count += 1
        return is_sampled(self.count - 1, share)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Next tokens of one step's flexible rows: full model against served."""

    kl: list[float]  # KL(full || served) in nats
    agrees: list[bool]  # both have the same top-1 token

    @property
    def mean_kl(self) -> float:
        return sum(self.kl) / len(self.kl)

    @property
    def agreement(self) -> float:
        return sum(self.agrees) / len(self.agrees)


def refusal(model_config: Any) -> str | None:
    """The reason to refuse to run a step of this ``ModelConfig`` twice; None if it can."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    if mambaish_config(model_config) is None:
        return None
    return "its recurrent layers would process each token of a shadowed step twice"


def compare(full: torch.Tensor, served: torch.Tensor) -> Comparison:
    """``full`` and ``served``: log-probabilities [rows, V] float32 of the same rows."""
    kl, agrees = divergence(full, served)
    return Comparison(kl.tolist(), agrees.tolist())


def divergence(full: torch.Tensor, served: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(full || served) in nats, float32 [rows], and whether both have one top token, bool [rows].

    ``full`` and ``served``: log-probabilities [rows, V] float32 of the same rows.
    """
    terms = full.exp() * (full - served)
    kl = terms.masked_fill(full == -torch.inf, 0.0).sum(dim=-1).clamp(min=0.0)  # 0 log 0 = 0
    return kl, full.argmax(dim=-1) == served.argmax(dim=-1)


def flexible_rows(row_class: torch.Tensor) -> torch.Tensor:
    """Indices int64 of the rows to compare; ``row_class``: uint8 [rows]."""
    return (row_class == RowClass.FLEXIBLE).nonzero().squeeze(1)


def log_probabilities(output: Any, rows: torch.Tensor) -> torch.Tensor:
    """Next-token log-probabilities [rows, V] float32, a copy.

    Args:
        output: SGLang's ``ModelRunnerOutput``.
        rows: int64, indices of the rows to take.
    """
    return take_logits(output, rows).float().log_softmax(dim=-1)


def take_logits(output: Any, rows: torch.Tensor) -> torch.Tensor:
    """Next-token logits [rows, V], a copy; see ``log_probabilities``.

    They are the model's own: before penalties, grammar, temperature and sampling.
    """
    logits: torch.Tensor = output.logits_output.next_token_logits
    return logits.index_select(0, rows)


@dataclass(slots=True)
class ShadowTotals:
    """Sums over all shadow passes; the difference of two readings covers a window."""

    steps: int = 0
    rows: int = 0
    kl_sum: float = 0.0
    agreements: int = 0
    # Rows by KL: one bucket up to each bound of KL_BUCKETS, one above the last.
    histogram: list[int] = field(default_factory=lambda: [0] * (len(KL_BUCKETS) + 1))

    def add(self, seen: Comparison) -> None:
        self.steps += 1
        self.rows += len(seen.kl)
        self.kl_sum += sum(seen.kl)
        self.agreements += sum(seen.agrees)
        for kl in seen.kl:
            self.histogram[bisect_left(KL_BUCKETS, kl)] += 1

    def report(self) -> dict[str, Any]:
        """JSON for ``/server_info``; means and quantile are None before the first row."""
        rows = self.rows
        return {
            "steps": self.steps,
            "rows": rows,
            "kl_sum": self.kl_sum,
            "kl_mean": self.kl_sum / rows if rows else None,
            "kl_p99": quantile(self.histogram, 0.99) if rows else None,
            "agreements": self.agreements,
            "agreement": self.agreements / rows if rows else None,
            "kl_buckets": list(KL_BUCKETS),
            "kl_histogram": list(self.histogram),
        }


def quantile(histogram: list[int], share: float) -> float:
    """Quantile of a histogram over KL_BUCKETS, linear inside a bucket as Prometheus has it."""
    wanted = share * sum(histogram)
    below, low = 0, 0.0
    for count, high in zip(histogram, KL_BUCKETS, strict=False):
        if count and below + count >= wanted:
            return low + (high - low) * (wanted - below) / count
        below, low = below + count, high
    return low
