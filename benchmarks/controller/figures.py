"""Figures of a run, from what every controller has: gaps, share, retained mass.

Gaps are ratios to the SLO in force, so that an SLO that changes needs no special case. Tokens are
gaps times rows. A request of a scripted load is 64 steps of one stream.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import numpy as np

from benchmarks.controller.policies import FLOOR
from benchmarks.controller.scenarios import Scenario, Span
from benchmarks.plant.metrics import (
    overshoot,
    recovery_steps,
    reversals_per_1000,
    settling_steps,
    windowed_ms,
)
from benchmarks.plant.simulator import Sample

NAN = float("nan")
REQUEST_STEPS = 64
ABOUT = {
    "tokens": "tokens with a gap above the SLO, %",
    "first": "requests that waited longer than the TTFT for their first token, %",
    "requests": "requests whose mean gap (TPOT) is above the SLO, %",
    "windows": "seconds whose p95 gap is above the SLO, %",
    "mass": "gate mass kept, mean over tokens (full top-k: 1)",
    "on_time": "gate mass delivered within the SLO: quality x (1 - violations), of TTFT too",
    "lead": "on_time less lynx's, same seed",
    "settling": "steps from the event until every later window of 64 has its p95 in the SLO",
    "back": "steps from the load's fall until the share is 1 for good",
    "overshoot": "worst windowed p95 over the SLO, less one, %",
    "reversals": "changes of direction of the share per 1,000 steps at constant load",
    "headroom": "SLO left unused while the share was below 1, mean, %",
    "regret": "gate mass below the best static share of each plateau, in hindsight, %",
    "leave": "steps from the load's fall until the share leaves the floor",
    "attribution": "gate mass given up to a slow_down that no cut wins back, %",
}


@dataclass
class Run:
    samples: list[Sample]
    ratios: list[float]  # gap over the SLO in force
    tpots: list[float]  # of requests, over the SLO
    host_us: list[float]  # per decision
    ttfts: list[float] = field(default_factory=list)  # of requests, over the TTFT target

    def busy(self, span: Span) -> Run:
        start, end = span
        return Run(self.samples[start:end], self.ratios[start:end], self.tpots, [], self.ttfts)


def late_share(run: Run) -> float:
    rows = np.array([each.load.rows for each in run.samples], dtype=float)
    return float((rows * (np.array(run.ratios) > 1.0)).sum() / rows.sum())


def mass_of(run: Run, is_on_time: bool = False) -> float:
    rows = np.array([each.load.rows for each in run.samples], dtype=float)
    mass = np.array([each.mass for each in run.samples])
    counted = mass * (np.array(run.ratios) <= 1.0) if is_on_time else mass
    return float((rows * counted).sum() / rows.sum())


def late_windows(run: Run) -> float:
    at_ms = np.cumsum([each.gap_ms for each in run.samples])
    second = (at_ms // 1000).astype(int)
    ratios = np.array(run.ratios)
    return float(np.mean([np.percentile(ratios[second == s], 95) > 1.0 for s in np.unique(second)]))


def late_requests(run: Run) -> float:
    if run.tpots:
        return float(np.mean(np.array(run.tpots) > 1.0))
    chunks = [
        run.ratios[i : i + REQUEST_STEPS]
        for i in range(0, len(run.ratios) - REQUEST_STEPS + 1, REQUEST_STEPS)
    ]
    return float(np.mean([statistics.fmean(chunk) > 1.0 for chunk in chunks]))


def unused(run: Run) -> float:
    """Mean of 1 - windowed p95 / SLO over the windows in which the share was below 1 throughout."""
    is_cut = np.array([each.share < 1.0 for each in run.samples])
    p95 = np.array(windowed_ms(run.ratios, 95.0, 64))
    cut = np.convolve(is_cut, np.ones(64), "valid") >= 64
    return float(np.maximum(0.0, 1.0 - p95[cut]).mean()) if cut.any() else NAN


def judge(scenario: Scenario, run: Run, oracle: list[float]) -> dict[str, float]:
    """`oracle`: the gate mass of the best static share, per plateau."""
    busy = run.busy(scenario.busy)
    shares = [each.share for each in run.samples]
    start, end = scenario.busy
    constant = scenario.name not in (
        "ramp",
        "wander",
        "burst",
        "diurnal",
        "mixed",
        "neighbour",
        "queue",
    )
    late_firsts = float(np.mean(np.array(run.ttfts) > 1.0)) if run.ttfts else NAN
    on_time = mass_of(busy, is_on_time=True) * (1.0 - late_firsts if run.ttfts else 1.0)
    figures = {
        "first": 100.0 * late_firsts,
        "tokens": 100.0 * late_share(busy),
        "requests": 100.0 * late_requests(busy),
        "windows": 100.0 * late_windows(busy),
        "mass": mass_of(busy),
        "on_time": on_time,
        "settling": NAN,
        "back": NAN,
        "overshoot": 100.0 * overshoot(busy.ratios, 1.0),
        "reversals": reversals_per_1000(shares[start + 50 : end]) if constant else NAN,
        "headroom": 100.0 * unused(busy),
        "regret": NAN,
        "leave": NAN,
        "attribution": NAN,
    }
    if scenario.event:
        figures["settling"] = float(settling_steps(run.ratios[scenario.event : end], 1.0))
    if scenario.name == "slo_changed":  # loose at the end: the tight stretch is what settles
        figures["settling"] = float(settling_steps(run.ratios[scenario.event : 600], 1.0))
        parts = [shares[a + 25 : b] for a, b in ((100, 300), (300, 600), (600, 900))]
        figures["reversals"] = float(np.mean([reversals_per_1000(each) for each in parts]))
    if scenario.falls is not None:
        after = shares[scenario.falls :]
        figures["back"] = float(recovery_steps(after))
        if scenario.name == "infeasible":
            below = [i for i, each in enumerate(after) if each <= FLOOR + 0.01]
            figures["leave"] = float(below[-1] + 1 if below else 0)
    if oracle:
        lost = [
            best - mass_of(run.busy(span))
            for best, span in zip(oracle, scenario.plateaus, strict=True)
        ]
        figures["regret"] = 100.0 * statistics.fmean(lost)
    if scenario.name in ("slow_down", "slow_step"):
        before = mass_of(run.busy((100, scenario.event)))
        figures["attribution"] = 100.0 * (before - mass_of(busy))
    return figures
