"""The controllers that the scorecard compares. Each maps an observation to (demand, caps).

Each moves the share of the experts that a step may use, down to our least share; a published
policy's docstring names its own actuator. The others are given a batch's uncapped experts; ours
learns them. `plan` decides for a batch before it runs; None where a policy cannot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.plant.simulator import Plant, Setting
from lynx_controller import Batch, Controller, ControllerConfig, Decision, Observation, Slo

MIN_MASS = 0.75  # the floor under quality
FLOOR = round(1.0 - ((1.0 - MIN_MASS) / Plant().spill) ** 0.5, 2)  # the share that keeps it
CapsOf = Callable[[int, float], Sequence[int]]
"""[L] the caps that hold so many rows to a share of what they would use."""


def gap_of(seen: Observation) -> float:
    return seen.step_ms if seen.itl_ms is None else seen.itl_ms


@dataclass
class Policy:
    slo_ms: float
    caps_of: CapsOf
    share: float = 1.0

    def set_slo(self, slo_ms: float) -> None:
        self.slo_ms = slo_ms

    def plan(self, rows: int) -> Setting | None:
        return None

    def __call__(self, seen: Observation) -> Setting:
        self.observe(seen)
        return 1.0, self.caps_of(seen.batch.rows, self.share)

    def observe(self, seen: Observation) -> None:
        """One share for the whole run."""

    def move(self, share: float) -> None:
        self.share = min(max(share, FLOOR), 1.0)


@dataclass
class BatchTable(Policy):
    """A table by batch-size class, profiled offline on the plant as it was when the run began.

    The largest share whose 98th percentile fits the SLO at the class's largest batch.
    `slope_error` is what the profile's machine differs by.
    """

    plant: Plant = field(default_factory=Plant)
    slope_error: float = 1.0
    headroom: float = 1.10
    table: dict[tuple[int, float], float] = field(default_factory=dict)

    def observe(self, seen: Observation) -> None:
        self.look_up(seen.batch.rows)

    def plan(self, rows: int) -> Setting:
        self.look_up(rows)
        return 1.0, self.caps_of(rows, self.share)

    def look_up(self, rows: int) -> None:
        size_class = 1 << (rows - 1).bit_length()
        if (size_class, self.slo_ms) not in self.table:
            grid = np.linspace(FLOOR, 1.0, 51).tolist()
            fitting = [each for each in grid if self.fits(size_class, each)]
            self.table[size_class, self.slo_ms] = max(fitting, default=FLOOR)
        self.move(self.table[size_class, self.slo_ms])

    def fits(self, rows: int, share: float) -> bool:
        plant = self.plant
        active = plant.active_at(rows, share) * self.slope_error
        return bool(self.headroom * plant.step_ms(rows, active) <= self.slo_ms)


@dataclass
class BrownoutServe(Policy):
    """arXiv 2507.17133: every 5 s, p90 > SLO: x 0.8; p90 < 0.8 SLO: + 0.1; else hold.

    Published for the share of requests served in full, without a floor.
    """

    gaps_ms: list[float] = field(default_factory=list)

    def observe(self, seen: Observation) -> None:
        self.gaps_ms.append(gap_of(seen))
        if sum(self.gaps_ms) >= 5000.0:
            p90 = float(np.percentile(self.gaps_ms, 90))
            if p90 > self.slo_ms:
                self.move(self.share * 0.8)
            elif p90 < 0.8 * self.slo_ms:
                self.move(self.share + 0.1)
            self.gaps_ms.clear()


@dataclass
class Brownout(Policy):
    """Klein et al., ICSE'14: t = alpha * theta, alpha by RLS, theta += (1 - pole) / alpha * error.

    Constants of its authors' controller (github cloud-control/brownout: period 0.5 s, pole 0.9,
    forgetting 0.95, alpha 1, P 1000, 95th percentile, time in set points); theta starts at 1.
    """

    alpha: float = 1.0
    p: float = 1000.0
    gaps_ms: list[float] = field(default_factory=list)

    def observe(self, seen: Observation) -> None:
        self.gaps_ms.append(gap_of(seen))
        if sum(self.gaps_ms) < 500.0:
            return
        t, theta = float(np.percentile(self.gaps_ms, 95)) / self.slo_ms, self.share
        self.gaps_ms.clear()
        a = self.p * theta
        g = 1.0 / (theta * a + 0.95)
        self.alpha += g * a * (t - theta * self.alpha)
        self.p = (self.p - g * a * a) / 0.95
        self.move(theta + (1.0 - 0.9) / self.alpha * (1.0 - t))


@dataclass
class Pi(Policy):
    """PI on the windowed p95, each step; velocity form, so the clamp is the anti-windup.

    Gains: the best of scorecard.py --tune, on seeds kept for that.
    """

    kp: float = 1.0
    ki: float = 0.03
    error: float = 0.0
    gaps_ms: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def observe(self, seen: Observation) -> None:
        self.gaps_ms.append(gap_of(seen))
        ordered = sorted(self.gaps_ms)
        error = 1.0 - ordered[int(0.95 * (len(ordered) - 1))] / self.slo_ms
        self.move(self.share + self.kp * (error - self.error) + self.ki * error)
        self.error = error


@dataclass
class Lynx:
    controller: Controller
    decisions: list[Decision] = field(default_factory=list)

    def set_slo(self, slo_ms: float) -> None:
        self.controller.set_slo(replace(self.controller.slo, itl_ms=slo_ms))

    def plan(self, rows: int) -> Setting:
        decision = self.controller.plan(Batch.of(rows))
        return decision.demand, decision.budget

    def __call__(self, seen: Observation) -> Setting:
        decision = self.controller.step(seen)
        self.decisions.append(decision)
        return decision.demand, decision.budget


def lynx(
    plant: Plant,
    slo_ms: float,
    config: ControllerConfig,
    ttft_ms: float | None = None,
    inherited: tuple[float, float, float] | None = None,
) -> Lynx:
    slo = Slo(itl_ms=slo_ms, percentile=95, ttft_ms=ttft_ms)
    controller = Controller(slo, plant.num_layers, plant.num_experts, plant.top_k, config)
    if inherited is not None:
        controller.inherit(*inherited)
    return Lynx(controller)
