"""A synthetic serving fleet: replicas x layers whose cost law depends on hidden groups.

Per layer and step, in us, outside the family of every model that is compared:

    us = alpha + ((A b / BW)^3 + (F / FLOPS)^3)^(1/3) + delta KV + comm size_class^0.8,   5 % noise

Replicas run on two accelerators (visible, as their block), in one of two hidden states: nominal, or
slowed (less bandwidth, dearer launches, slower links). Hosts mix the states. Replicas differ by a
further 6 %, layers by 8 % and in their routing skew, sites by 2 %.
Traffic (batch size, context length, how often demand is cut) belongs to the replica alone, so that
similar covariates say nothing about the cost law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.cellscope.models.features import Features, expected_active

Array = NDArray[np.float64]

SAMPLES: Final = (2, 4, 8, 16, 32, 64)  # per site, lengths of the windows compared
NUM_REPLICAS: Final = 16
NUM_LAYERS: Final = 4
REPLICAS_PER_HOST: Final = 4
NUM_EXPERTS: Final = 64
TOP_K: Final = 8
EXPERT_BYTES: Final = 9.4e6  # 3 * 2048 * 768 * 2
NOISE: Final = 0.05
MOST_ROWS: Final = 128
CUT: Final = 0.4  # share of steps that run under a demand below 1
RAW: Final = ("rows", "size_class", "kv_tokens", "demand", "queue")

# alpha us, bandwidth B/us, FLOP/us, KV us/token, comm us; state 0 nominal, 1 slowed
STATES: Final = {
    ("fast", 0): (18.0, 2.6e6, 3.0e8, 0.0008, 0.9),
    ("fast", 1): (34.0, 1.7e6, 2.6e8, 0.0012, 2.4),
    ("slow", 0): (26.0, 1.5e6, 1.2e8, 0.0016, 1.2),
    ("slow", 1): (52.0, 0.8e6, 1.0e8, 0.0022, 4.0),
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """The traffic of one replica."""

    log_rows: float
    rows_spread: float
    context_tokens: float
    prefers_cut: float


class Sites(Protocol):
    """A fleet as every model knows it: per site [S] its replica, layer, block and host."""

    seed: int
    replica: NDArray[np.int64]
    layer: NDArray[np.int64]
    block: list[str]
    host: list[str]

    def probe(self) -> Array:
        """Physics features of the loads that fingerprints are compared on."""


@dataclass(frozen=True, slots=True)
class Window:
    """Samples of every site: [S, n] quantities, and the views that the models take."""

    raw: Array  # [S, n, len(RAW)]
    physics: Array  # [S, n, d]
    us: Array  # [S, n] observed
    clean_us: Array  # [S, n] without noise


class Fleet:
    """Sites are numbered replica-major; `drawn` numbers the window, so that windows differ."""

    def __init__(self, seed: int, num_replicas: int = NUM_REPLICAS) -> None:
        rng = np.random.default_rng([seed, 1])
        self.seed = seed
        self.num_replicas = num_replicas
        self.replica = np.repeat(np.arange(num_replicas), NUM_LAYERS)
        self.layer = np.tile(np.arange(NUM_LAYERS), num_replicas)
        accelerator = rng.permutation(np.arange(num_replicas) % 2)
        state = np.zeros(num_replicas, dtype=np.int64)
        for kind in (0, 1):
            of_kind = np.flatnonzero(accelerator == kind)
            state[rng.permutation(of_kind)[: len(of_kind) // 2]] = 1
        self.block = [("fast", "slow")[accelerator[r]] for r in self.replica]
        self.hidden = [f"{b}-{state[r]}" for b, r in zip(self.block, self.replica, strict=True)]
        self.host = [f"host-{r // REPLICAS_PER_HOST}" for r in self.replica]
        self.traffic = [
            Traffic(
                log_rows=rng.uniform(np.log(3.0), np.log(40.0)),
                rows_spread=rng.uniform(0.2, 0.5),
                context_tokens=float(np.exp(rng.uniform(np.log(200.0), np.log(3000.0)))),
                prefers_cut=rng.uniform(0.1, 2.0 * CUT - 0.1),
            )
            for _ in range(num_replicas)
        ]
        skew = rng.uniform(0.2, 0.9, NUM_LAYERS)
        ranks = np.arange(1, NUM_EXPERTS + 1)
        popularity = ranks[None, :] ** -skew[:, None]
        popularity = TOP_K * popularity / popularity.sum(axis=1, keepdims=True)
        counts = np.arange(MOST_ROWS + 1)
        self.uncapped = np.stack(  # [L, rows] active experts if nothing is cut
            [expected_active(np.minimum(each, 0.95), counts) for each in popularity]
        )
        law = np.array(
            [STATES[("fast", "slow")[accelerator[r]], int(state[r])] for r in range(num_replicas)]
        )
        own = np.exp(0.06 * rng.standard_normal((num_replicas, 5)))
        layers = np.exp(0.08 * rng.standard_normal((NUM_LAYERS, 5)))
        site = np.exp(0.02 * rng.standard_normal((num_replicas * NUM_LAYERS, 5)))
        self.law = (law * own)[self.replica] * layers[self.layer] * site  # [S, 5]

    def probe(self) -> Array:
        """Loads that fingerprints are compared on: size_classes x active experts x context."""
        size_classes, shares, contexts = (4.0, 16.0, 64.0), (0.4, 0.9), (300.0, 2000.0)
        loads = [
            (m, m, a * NUM_EXPERTS, m * c) for m in size_classes for a in shares for c in contexts
        ]
        return Features(EXPERT_BYTES).matrix(*np.array(loads).T)

    def draw(self, samples: int, drawn: int) -> Window:
        """`samples` steps of every replica; its layers see the same steps."""
        rng = np.random.default_rng([self.seed, 2, drawn])
        shape = (self.num_replicas, samples)
        at = self.traffic
        log_rows = np.array([[t.log_rows] for t in at])
        spread = np.array([[t.rows_spread] for t in at])
        rows = np.exp(log_rows + spread * rng.standard_normal(shape)).round().clip(1, MOST_ROWS)
        size_class = 2.0 ** np.ceil(np.log2(rows))
        context = np.array([[t.context_tokens] for t in at])
        kv_tokens = (rows * context * np.exp(0.25 * rng.standard_normal(shape))).round()
        is_cut = rng.random(shape) < np.array([[t.prefers_cut] for t in at])
        demand = np.where(is_cut, rng.uniform(0.5, 1.0, shape), 1.0)
        queue = rng.poisson(0.2 * rows).astype(np.float64)
        per_site = [each[self.replica] for each in (rows, size_class, kv_tokens, demand, queue)]
        rows, size_class, kv_tokens, demand, _ = per_site
        uncapped = self.uncapped[self.layer[:, None], rows.astype(np.int64)]
        active = uncapped * demand**1.6 * (1.0 + 0.04 * rng.standard_normal(uncapped.shape))
        active = active.clip(TOP_K, NUM_EXPERTS).round()
        clean_us = self._us(rows, size_class, kv_tokens, active)
        noise = np.exp(NOISE * rng.standard_normal(clean_us.shape))
        physics = Features(EXPERT_BYTES).matrix(rows, size_class, active, kv_tokens)
        return Window(np.stack(per_site, axis=-1), physics, clean_us * noise, clean_us)

    def _us(self, rows: Array, size_class: Array, kv_tokens: Array, active: Array) -> Array:
        alpha, bandwidth, flops, delta, comm = self.law.T[:, :, None]
        memory_us = active * EXPERT_BYTES / bandwidth
        compute_us = rows * TOP_K * EXPERT_BYTES / flops
        expert_us = (memory_us**3 + compute_us**3) ** (1.0 / 3.0)
        return np.asarray(alpha + expert_us + delta * kv_tokens + comm * size_class**0.8)
