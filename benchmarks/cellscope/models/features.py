"""Features of a MoE layer's step: the quantities that its time is linear in.

    us = launch + expert_mb / bandwidth + token_us * tokens + kv_us * kv_ktokens = z'w

- launch: kernels, router and norms; 1 per layer-step.
- expert_mb = A b / 1e6: weights of the A active experts, b bytes each, read once: the memory side
  of the roofline. Its weight is 1 / effective bandwidth, in us/MB (1 us/MB is 1 TB/s).
- tokens: rows that the captured graph computes (its size class) plus prefill tokens:
  the compute side of the roofline, all-to-all and all-reduce grow with it.
- kv_ktokens: context that attention reads, in thousands of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

NAMES: Final = ("launch", "expert_mb", "tokens", "kv_ktokens")
NUM_FEATURES: Final = len(NAMES)


def expected_active(popularity: ArrayLike, rows: ArrayLike) -> Array:
    """A = sum_e 1 - (1 - p_e)^rows for rows routed independently; p_e: chance that a row takes e.

    For uniform routing p_e = k / E. Where the count was logged, use that.
    """
    missed = 1.0 - np.asarray(popularity, dtype=np.float64)
    exponent = np.asarray(rows, dtype=np.float64)[..., None]
    return np.asarray((1.0 - missed**exponent).sum(axis=-1))


@dataclass(frozen=True, slots=True)
class Features:
    """Turns what was logged into z, for the layers of one model."""

    expert_bytes: float  # one expert's weights, as stored (quantised)

    def __post_init__(self) -> None:
        if not self.expert_bytes > 0.0:
            raise ValueError(f"expert_bytes must be > 0, got {self.expert_bytes!r}")

    def matrix(
        self,
        decode_rows: ArrayLike,
        size_class: ArrayLike,
        active_experts: ArrayLike,
        kv_tokens: ArrayLike,
        prefill_tokens: ArrayLike = 0,
    ) -> Array:
        """[..., d] in the order of NAMES; arguments broadcast. Size class 0: no graph.

        For a step of which only the whole time is visible, give the layers' sum of active experts:
        the step is then one site.
        """
        tokens = np.maximum(size_class, decode_rows) + np.asarray(prefill_tokens, dtype=np.float64)
        expert_mb = np.asarray(active_experts, dtype=np.float64) * (self.expert_bytes / 1e6)
        kv_ktokens = np.asarray(kv_tokens, dtype=np.float64) / 1e3
        parts = np.broadcast_arrays(1.0, expert_mb, tokens, kv_ktokens)
        return np.stack(parts, axis=-1).astype(np.float64)
