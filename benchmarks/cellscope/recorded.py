"""Steps of real servers, as one more fleet. Only whole steps are timed, so a site is a size class
of a replica.

A replica is a decision log (`--lynx-decision-log`); its visible block is its model. Windows are
consecutive steps of a site's first half, as a controller sees them that has just started; steps of
the second half are predicted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.cellscope import contenders
from benchmarks.cellscope.fleet import SAMPLES, Array, Window
from benchmarks.cellscope.models.features import Features
from lynx_controller import Observation, Phase

WARM_UP: Final = 5  # first steps of a site, dropped
SHORTEST: Final = 160  # steps that a site must have
TESTED: Final = 80  # steps of each site
HINDSIGHT: Final = "ours, fitted on what is predicted"


class Recorded:
    """Recorded steps in the form of `fleet.Fleet`; a host is a log."""

    def __init__(self, logs: Sequence[tuple[Path, Path]]) -> None:
        """
        Args:
            logs: folder of the model, for its sizes, and decision log of a server that ran it.

        Raises:
            ValueError: fewer than two sites have SHORTEST decode steps.
        """
        self.seed = 0
        at: list[tuple[int, int]] = []  # replica and size_class of each site
        self.block: list[str] = []
        self.host: list[str] = []
        self._raw: list[Array] = []
        self._physics: list[Array] = []
        self._us: list[Array] = []
        for i, (model, log) in enumerate(logs):
            features = Features(expert_bytes(model))
            for size_class, steps in sorted(by_size_class(log).items()):
                at.append((i, size_class))
                self.block.append(model.name)
                self.host.append(str(log))
                columns = [
                    (
                        s.batch.rows,
                        s.batch.size_class,
                        s.kv_tokens,
                        sum(caps_of(s)),
                        sum(s.active_experts),
                    )
                    for s in steps
                ]
                rows, size_classes, kv_tokens, caps, active = np.array(columns, dtype=np.float64).T
                self._raw.append(np.stack([rows, size_classes, kv_tokens, caps], axis=-1))
                self._physics.append(features.matrix(rows, size_classes, active, kv_tokens))
                self._us.append(np.array([1e3 * s.step_ms for s in steps]))
        if len(self._us) < 2:
            raise ValueError(
                f"--recorded: expected two or more size classes with {SHORTEST} decode "
                f"steps in the logs, got {len(self._us)}"
            )
        self.replica, self.layer = np.array(at).T

    def probe(self) -> Array:
        """Loads that fingerprints are compared on: each site's median one."""
        return np.stack([np.median(each, axis=0) for each in self._physics])

    def draw(self, samples: int, seed: int) -> Window:
        """Consecutive steps of each site's first half, from a random one on."""
        rng = np.random.default_rng([seed, samples])
        starts = [int(rng.integers(len(us) // 2 - samples + 1)) for us in self._us]
        return self._window([np.arange(start, start + samples) for start in starts])

    def tested(self, seed: int) -> Window:
        """Steps of each site's second half."""
        rng = np.random.default_rng([seed, 0])
        halves = [np.arange(len(us) // 2, len(us)) for us in self._us]
        return self._window([rng.choice(half, TESTED, replace=False) for half in halves])

    def _window(self, steps: Sequence[NDArray[np.int64]]) -> Window:
        raw, physics, us = (
            np.stack([site[at] for site, at in zip(each, steps, strict=True)])
            for each in (self._raw, self._physics, self._us)
        )
        return Window(raw, physics, us, us)


def expert_bytes(model: Path) -> float:
    """One expert's weights, three float32 matrices, as the CPU server computes them."""
    config = json.loads((model / "config.json").read_text())
    return 4.0 * 3 * float(config["hidden_size"] * config["moe_intermediate_size"])


def caps_of(seen: Observation) -> Sequence[int]:
    """The cap of each layer; 0 without one."""
    caps = seen.budget_applied or 0
    return [caps] * len(seen.active_experts) if isinstance(caps, int) else caps


def by_size_class(log: Path) -> dict[int, list[Observation]]:
    """A log's decode steps; of size_classes that have enough of them."""
    found: dict[int, list[Observation]] = {}
    for line in log.read_text().splitlines()[1:]:
        entry = json.loads(line)
        if entry["call"] == "step":
            seen = Observation.from_dict(entry["with"])
            if seen.batch.phase is Phase.DECODE and seen.step_ms > 0.0 and seen.active_experts:
                found.setdefault(seen.batch.size_class, []).append(seen)
    return {at: steps[WARM_UP:] for at, steps in found.items() if len(steps) >= SHORTEST}


def accuracy(fleet: Recorded, seeds: range) -> dict[str, dict[str, dict[str, float]]]:
    """Median absolute percentage error over sites and steps; median and quartiles over windows."""
    found: dict[str, dict[int, list[float]]] = {}
    for seed in seeds:
        test = fleet.tested(seed)
        hindsight = contenders.ours(fleet, test)
        for n in SAMPLES:
            window = fleet.draw(n, seed)
            laws = {name: contenders.LEARNED[name](fleet, window) for name in contenders.LEARNED}
            for name, predict in {**laws, HINDSIGHT: hindsight}.items():
                off = 100.0 * float(np.median(np.abs(predict(test) / test.us - 1.0)))
                found.setdefault(name, {}).setdefault(n, []).append(off)
    return {
        name: {str(n): spread(values) for n, values in by_n.items()} for name, by_n in found.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "quartile_low": float(low), "quartile_high": float(high)}
