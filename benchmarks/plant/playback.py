"""A recorded server as a plant: its steps, recomputed under other decisions.

From a decision log (`--lynx-decision-log`): rows, gaps, KV growth, noise and interference of each
step stay as recorded; only the cost of experts changes:

    N_l  = T_l below its cap, else the larger of T_l and the forecast of uncapped active experts
    T'_l = min(N_l, cap'_l)        ms' = ms + slope * sum(T' - T)
    lost = spill * mean over layers of (1 - T'_l / N_l)^2; under its own caps, what was recorded

Slope, uncapped active experts and spill are fitted on the log by the controller's own models. A
playback therefore compares laws on real loads, but does not test these models. For caps that a log
never ran under it has their priors alone: record with caps from full to the least share. Demands
below 1 are not played.

The load may also come from a server without Lynx, by SGLang's record of its forward passes
(`passes`): rows, KV tokens and times are then the record's. It has no T, which the models fitted on
the log forecast at full quality; so the log must be of the same model and machine.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.plant import passes
from benchmarks.plant.simulator import Load, Sample, Setting
from lynx_controller.learn.estimator import Estimator
from lynx_controller.learn.history import Applied
from lynx_controller.learn.quality import Quality
from lynx_controller.learn.uncapped import PerLayer
from lynx_controller.log.decision_log import controller_of
from lynx_controller.types import Batch, Observation, Phase


class Playback:
    """Runs the log's decode steps once, in order, or those of `recorded`; `loads` are theirs."""

    def __init__(self, path: Path, recorded: Path | None = None) -> None:
        """
        Args:
            path: a decision log.
            recorded: SGLang's record of forward passes at full quality, to be played instead.

        Raises:
            ValueError: a file is of another kind, or holds no whole decode step. A whole one of a
                decision log says its active experts, and the caps that it ran under.
        """
        with path.open() as lines:
            header = next(lines, "")
            if passes.is_passes(header):
                raise ValueError(
                    f"{path} is SGLang's record of forward passes, which says neither the active "
                    "experts nor the caps of a step: give it as `recorded`, and as `path` a "
                    "decision log of the same model on the same machine"
                )
            logged = controller_of(header)
            self.num_layers, self.num_experts = logged.num_layers, logged.num_experts
            self.top_k = logged.top_k
            self.recorded = [seen for seen in map(self._read, lines) if seen is not None]
        if not self.recorded:
            raise ValueError(f"{path} holds no decode step with its active experts and caps")
        sizes = self.num_layers, self.num_experts, self.top_k
        self._estimator = Estimator(logged.config, *sizes)
        self._quality = Quality(logged.config.prior_kl)
        for seen in self.recorded:
            self._learn(seen)
        if recorded is not None:
            self.recorded = self._of_passes(recorded)
        self.loads = [
            Load(seen.batch.rows, max(0.0, (seen.itl_ms or seen.step_ms) - seen.step_ms))
            for seen in self.recorded
        ]
        self._next = 0

    @property
    def slope_ms(self) -> float:
        """The cost of an expert in a layer, as fitted on the decision log."""
        return self._estimator.cost.slope_ms

    def caps(self, rows: int, share: float) -> tuple[int, ...]:
        """[L] the caps that hold a batch to a share of what it would use, as the log taught."""
        if share >= 1.0:
            return (self.num_experts,) * self.num_layers
        layers = self._estimator.layers(Batch.of(rows))
        return tuple(np.rint(np.maximum(share * layers, self.top_k)).astype(int).tolist())

    def caps_of(self, seen: Observation) -> tuple[int, ...]:
        """[L] those that a recorded step ran under."""
        return tuple(int(cap) for cap in self._caps(seen))

    def run(self, load: Load, setting: Setting) -> tuple[Observation, Sample]:
        """The next recorded step under another setting; `load` is its own."""
        seen = self.recorded[self._next]
        self._next += 1
        caps = np.array(setting[1], dtype=float)
        uncapped, before = self._uncapped(seen), np.array(seen.active_experts, dtype=float)
        active = np.maximum(np.minimum(uncapped, caps), np.minimum(uncapped, self.top_k))
        active = np.where(caps == self._caps(seen), before, active)  # floors may hold more
        step_ms = seen.step_ms + self._estimator.cost.slope_ms * float((active - before).sum())
        step_ms = max(step_ms, 0.05 * seen.step_ms)
        gap_ms = step_ms + load.outside_ms
        mass = self._mass(seen, uncapped, active)
        played = replace(
            seen,
            step=self._next,
            step_ms=step_ms,
            itl_ms=gap_ms,
            active_experts=active.tolist(),
            retained_mass=[mass] * self.num_layers,
            demand=1.0,
            budget_applied=tuple(setting[1]),
            shadow_kl=None,
            shadow_agreement=None,
        )
        total = float(uncapped.sum())
        share = float(np.minimum(uncapped, caps).sum()) / total
        return played, Sample(load, share, gap_ms, float(active.sum()), total, mass)

    def _read(self, line: str) -> Observation | None:
        try:
            record = json.loads(line)
            if record["call"] != "step":
                return None
            seen = Observation.from_dict(record["with"])
            is_whole = len(seen.active_experts) == self.num_layers and sum(seen.active_experts) > 0
            is_usable = seen.batch.phase is Phase.DECODE and seen.batch.rows > 0
            is_usable = (
                is_usable
                and 0.0 < seen.step_ms < 1e6
                and seen.demand == 1.0
                and seen.budget_applied is not None
            )
        except (TypeError, ValueError, KeyError):  # a torn line, an observation of anything
            return None
        return replace(seen, batch=seen.batch.in_range()) if is_whole and is_usable else None

    def _of_passes(self, recorded: Path) -> list[Observation]:
        size_classes = sorted({seen.batch.key[1] for seen in self.recorded})
        steps = []
        for number, each in enumerate(passes.read(recorded)):
            size_class = next((size for size in size_classes if size >= each.rows), 0)
            seen = Observation(
                step=number,
                batch=Batch.of(each.rows, size_class=size_class),
                step_ms=each.step_ms,
                itl_ms=each.step_ms + each.outside_ms,
                active_experts=(),
                kv_tokens=each.kv_tokens,
                demand=1.0,
                budget_applied=self.num_experts,
            )
            active = self._estimator.layers(seen.batch).tolist()
            steps.append(replace(seen, active_experts=active))
        if not steps:
            raise ValueError(f"{recorded} holds no pass that only decodes")
        return steps

    def _learn(self, seen: Observation) -> None:
        caps = self.caps_of(seen)
        active, batch = [float(each) for each in seen.active_experts], seen.batch
        applied = Applied(1.0, caps, is_certain=True)
        self._estimator.learn(batch, applied, active, seen.step_ms, seen.step_ms)
        share = self._estimator.read_share if batch.flexible_rows == batch.rows else None
        self._quality.learn(batch.key, batch.flexible_rows, share, seen.retained_mass, None, None)

    def _caps(self, seen: Observation) -> PerLayer:
        return np.broadcast_to(np.array(seen.budget_applied, dtype=float), (self.num_layers,))

    def _uncapped(self, seen: Observation) -> PerLayer:
        """[L] what a recorded step would have used uncut."""
        active, caps = np.array(seen.active_experts, dtype=float), self._caps(seen)
        is_bound = (active >= caps) & (caps < self.num_experts)
        usual = np.maximum(active, self._estimator.layers(seen.batch))
        return np.where(is_bound, usual, active)

    def _mass(self, seen: Observation, uncapped: PerLayer, active: PerLayer) -> float:
        if np.array_equal(active, seen.active_experts) and len(seen.retained_mass):
            return sum(seen.retained_mass) / len(seen.retained_mass)
        taken = 1.0 - active / uncapped
        spill = self._quality.lost_at(seen.batch.key, 0.0)
        return max(0.0, 1.0 - spill * float((taken**2).mean()))
