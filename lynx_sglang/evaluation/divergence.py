"""The KL from the full model to a served answer, token by token.

SGLang prefills with every expert, so the full model's probabilities of an answer are those of a
request whose prompt is the question and the served tokens: teacher forcing, with a clean KV cache.
Against the probabilities that the tokens were decoded with, this counts all that sharing did,
what earlier tokens left in the KV cache included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOP = 20  # log-probabilities asked for at each position
LEAST_REST = 1e-9  # mass outside the common tokens, below which float32 sums are noise

Top = Mapping[int, float]  # token id -> log-probability in nats


@dataclass(frozen=True, slots=True)
class Divergence:
    """One answer's decoded tokens, without the first: that one is the prefill's."""

    kl: list[float]  # KL(full || served) in nats, a lower bound: see `kl_of`
    agreements: int  # positions where both have the same most probable token
    nll_full: float  # sum over tokens of -log p under the full model
    nll_served: float  # and as they were decoded

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def kl_of(full: Top, served: Top) -> float:
    """KL(full || served) in nats over the tokens that both know, all others as one outcome.

    Merging outcomes never raises KL, so this is a lower bound of the whole vocabulary's.
    """
    common = full.keys() & served.keys()
    kl = sum(math.exp(full[token]) * (full[token] - served[token]) for token in common)
    rest, served_rest = (
        max(LEAST_REST, 1.0 - math.fsum(math.exp(top[token]) for token in common))
        for top in (full, served)
    )
    return max(0.0, kl + rest * math.log(rest / served_rest))


def top_of(entries: Sequence[Sequence[Any]]) -> dict[int, float]:
    """SGLang's ``[[logprob, token, text], ...]`` of one position."""
    return {token: logprob for logprob, token, *_ in entries}


def divergence(served: Mapping[str, Any], full: Mapping[str, Any]) -> Divergence:
    """Compare two ``meta_info``.

    Args:
        served: of the answer: its output log-probabilities, N tokens.
        full: of the teacher-forced pass from the question's last token on: N + 1 input positions,
            the first of which SGLang leaves empty.

    Raises:
        ValueError: the two are not of the same tokens.
    """
    spoken = served["output_token_logprobs"]
    forced = full["input_token_logprobs"][1:]
    if [token for _, token, *_ in spoken] != [token for _, token, *_ in forced]:
        raise ValueError("the teacher-forced pass returned other tokens than it was given")
    pairs = [
        (top_of(theirs), top_of(ours))
        for theirs, ours in zip(
            full["input_top_logprobs"][2:], served["output_top_logprobs"][1:], strict=True
        )
    ]
    return Divergence(
        kl=[kl_of(theirs, ours) for theirs, ours in pairs],
        agreements=sum(max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in pairs),
        nll_full=-sum(logprob for logprob, *_ in forced[1:]),
        nll_served=-sum(logprob for logprob, *_ in spoken[1:]),
    )
