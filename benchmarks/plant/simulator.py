"""A small decode plant in closed loop, for tests and benchmarks: no clock, one seed, no prior.

Layers differ and routing is bursty. A cap keeps the most important experts, so the lost mass grows
with the square of the share of experts that it removes, as measured on three models
(docs/quality.md). A demand bends T, above a floor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np

from lynx_controller.learn.uncapped import PerLayer
from lynx_controller.types import Batch, Observation, Phase

Setting: TypeAlias = tuple[float, Sequence[int]]
"""Demand, and cap per layer."""


@dataclass(frozen=True, slots=True)
class Load:
    """The arrivals of one step."""

    rows: int
    outside_ms: float = 0.0  # lost between steps: prefill, a sleeping scheduler
    inside_ms: float = 0.0  # lost within the step
    slowdown: float = 1.0  # of the whole step: another tenant of the machine
    expert_factor: float = 1.0  # what an expert costs, over what it did when the run began
    prefill_tokens: int = 0  # prefilled in the same step
    kv_ktokens: float = 0.0  # context that attention reads, thousands of tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """One decode step as it truly went."""

    load: Load
    share: float  # of the uncapped active experts, what the caps allowed
    gap_ms: float
    active: float  # over all layers
    uncapped: float  # what full quality would have read
    mass: float  # share of top-k gate mass that was kept, mean over layers
    kl: float = 0.0  # nats per token, expected


@dataclass(slots=True)
class Plant:
    num_layers: int = 8
    num_experts: int = 64
    top_k: int = 4
    base_ms: float = 6.0
    row_ms: float = 0.1
    kv_ms: float = 0.0  # per thousand tokens of context
    token_ms: float = 0.01  # per prefilled token
    slope_ms: float = 0.03  # per expert and layer
    concentration: float = 0.8  # uncapped active experts over uniform routing's, at many rows
    bend: float = 2.0  # exponent of active experts in demand
    spill: float = 1.06  # mass lost under a cap, over the square of the share that it takes
    spill_noise: float = 0.1  # its relative standard deviation from step to step
    noise: float = 0.05  # relative standard deviation of a step's time
    jitter: float = 0.06  # relative standard deviation of a layer's active experts
    warmup: float = 1.0  # factor on the first step of each size class
    kl_gain: float = 0.0  # nats per token with all mass lost
    kl_bend: float = 2.0  # exponent of the lost mass
    kl_rare: float = 0.01  # share of tokens that carry all of it, each with an exponential part
    shadow_share: float = 0.0  # of the cut steps; their KL is observed
    seed: int = 0
    rng: np.random.Generator = field(init=False)
    shadow_rng: np.random.Generator = field(init=False)
    layer_factor: np.ndarray[tuple[int], np.dtype[np.float64]] = field(init=False)
    warm: set[int] = field(default_factory=set)
    steps: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.shadow_rng = np.random.default_rng([self.seed, 1])
        self.layer_factor = self.rng.uniform(0.85, 1.15, self.num_layers)
        self.layer_factor /= self.layer_factor.mean()

    def uncapped(self, rows: int) -> float:
        """Expected active experts of a layer at full quality."""
        share = self.top_k / self.num_experts
        uniform = self.num_experts * (1.0 - (1.0 - share) ** rows)
        return uniform * (self.concentration + (1.0 - self.concentration) / rows)

    def active(self, rows: int, demand: float) -> float:
        """Expected active experts of a layer."""
        least = 1.0 / self.top_k + 0.04 * np.log2(rows)
        return float(self.uncapped(rows) * (least + (1.0 - least) * demand**self.bend))

    def layers(self, rows: int) -> PerLayer:
        """[L] expected active experts at full quality."""
        return np.minimum(self.uncapped(rows) * self.layer_factor, self.num_experts)

    def caps(self, rows: int, share: float) -> tuple[int, ...]:
        """[L] the caps that hold a batch to a share of what it would use."""
        if share >= 1.0:
            return (self.num_experts,) * self.num_layers
        wanted = np.rint(np.maximum(share * self.layers(rows), self.top_k))
        return tuple(wanted.astype(int).tolist())

    def active_at(self, rows: int, share: float) -> float:
        """Expected active experts over all layers under those caps."""
        return float(np.minimum(self.layers(rows), self.caps(rows, share)).sum())

    def mass(self, demand: float, kept: PerLayer) -> float:
        """Share of top-k gate mass that a row keeps; `kept` [L]: active over uncapped experts.

        Demand is met by whole experts, so it is overshot; what was not demanded is often there
        because another row demanded it. At full demand a cap alone decides.
        """
        taken = 1.0 - np.minimum(kept, 1.0)
        if demand < 1.0:
            return 1.0 - float(0.8 * (1.0 - demand) * taken.mean())
        noise = 1.0 + self.spill_noise * self.rng.standard_normal()
        return max(0.0, 1.0 - float(max(noise, 0.0) * self.spill * (taken**2).mean()))

    def step_ms(self, rows: int, active: float) -> float:
        return self.base_ms + self.row_ms * rows + self.slope_ms * active

    def shadow(self, kl: float, rows: int) -> float | None:
        """The mean KL of one step's rows, where it is sampled."""
        if not kl or self.shadow_rng.random() >= self.shadow_share:
            return None
        carriers = self.shadow_rng.binomial(rows, self.kl_rare)
        return (
            float(kl / self.kl_rare * self.shadow_rng.gamma(carriers) / rows) if carriers else 0.0
        )

    def run(self, load: Load, setting: Setting) -> tuple[Observation, Sample]:
        demand, budget = setting
        rows = load.rows + load.prefill_tokens
        asked = 1.0 if load.prefill_tokens else demand  # prefilled rows are exact
        spread = 1.0 + self.jitter * self.rng.standard_normal(self.num_layers)
        least = min(self.top_k, self.active(rows, 0.0))
        uncapped = self.uncapped(rows) * self.layer_factor * spread
        uncapped = np.rint(np.clip(uncapped, least, self.num_experts))
        mean = np.rint(uncapped * (self.active(rows, asked) / self.uncapped(rows)))
        cap = np.minimum(np.array(budget), self.num_experts)
        if load.prefill_tokens:
            cap = np.full(self.num_layers, self.num_experts)
        active = np.maximum(np.minimum(mean, cap), np.rint(least))
        total = float(active.sum())
        mass = self.mass(asked, active / uncapped)
        step_ms = self.step_ms(load.rows, load.expert_factor * total)
        step_ms += self.kv_ms * load.kv_ktokens + self.token_ms * load.prefill_tokens
        step_ms = (step_ms + load.inside_ms) * load.slowdown
        step_ms *= max(0.5, 1.0 + self.noise * self.rng.standard_normal())
        size_class = 1 << (load.rows - 1).bit_length()
        if size_class not in self.warm:
            self.warm.add(size_class)
            step_ms *= self.warmup
        gap_ms = step_ms + load.outside_ms
        kl = self.kl_gain * (1.0 - mass) ** self.kl_bend
        self.steps += 1
        phase = Phase.MIXED if load.prefill_tokens else Phase.DECODE
        observation = Observation(
            step=self.steps,
            batch=Batch(phase, load.rows, load.rows, size_class),
            step_ms=step_ms,
            active_experts=active.astype(int).tolist(),
            retained_mass=[mass] * self.num_layers,
            kv_tokens=int(1e3 * load.kv_ktokens),
            itl_ms=gap_ms,
            shadow_kl=self.shadow(kl, load.rows),
        )
        layers = self.layers(rows)
        share = float(np.minimum(layers, cap).sum() / layers.sum())
        sample = Sample(load, share, gap_ms, total, float(layers.sum()), mass, kl)
        return observation, sample


class Machine(Protocol):
    """A machine to control: a plant, or a recording of one."""

    num_layers: int
    num_experts: int

    def run(self, load: Load, setting: Setting) -> tuple[Observation, Sample]: ...


def simulate(
    plant: Machine,
    decide: Callable[[Observation], Setting],
    loads: Iterable[Load],
    lag_steps: int = 2,
) -> list[Sample]:
    """Run the loop; a decision made from one step reaches the step `lag_steps` later."""
    full: Setting = (1.0, (plant.num_experts,) * plant.num_layers)
    coming: deque[Setting] = deque([full] * lag_steps)
    samples = []
    for load in loads:
        observation, sample = plant.run(load, coming.popleft())
        samples.append(sample)
        coming.append(decide(observation))
    return samples
