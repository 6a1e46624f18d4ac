"""A recorded server as a plant: what its steps would have been under other decisions.

Taken from a decision log (`--lynx-decision-log`): rows, gaps, KV growth, noise and interference are
as they were, step by step; only what experts cost is changed:

    T'_l = T_l * curve(d') / curve(d), at most the cap        ms' = ms + slope * sum(T' - T)
    loss' = loss * ((1 - d') / (1 - d))^2, or spill * (1 - d')^2 where nothing was cut

Slope, curve and spill are fitted on the log by the controller's own models, so a playback tells
laws apart on real loads; it cannot tell whether these models hold. What a log never ran under, it
only knows by these models' priors: record with demands from full to the floor.

The load may also be that of a server without Lynx, by SGLang's record of its forward passes
(`passes`): rows, KV tokens and times are then the record's; T, which it lacks, is what the models
that were fitted on the log forecast at full quality. So the log must be of the same model and
machine.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from . import passes
from .batch import Batch
from .estimator import Estimator
from .history import Applied
from .log import controller_of
from .quality import Quality
from .simulator import Load, Sample, Setting
from .types import Observation, Phase


class Playback:
    """Runs the log's decode steps once, in order, or those of `recorded`; `loads` are theirs."""

    def __init__(self, path: Path, recorded: Path | None = None) -> None:
        """
        Args:
            path: a decision log.
            recorded: SGLang's record of forward passes at full quality, to be played instead.

        Raises:
            ValueError: a file is of another kind, or holds no whole decode step. A whole one of a
                decision log says its active experts, and the demand that it ran under.
        """
        with path.open() as lines:
            header = next(lines, "")
            if passes.is_passes(header):
                raise ValueError(
                    f"{path} is SGLang's record of forward passes, which says neither the active "
                    "experts nor the demand of a step: give it as `recorded`, and as `path` a "
                    "decision log of the same model on the same machine"
                )
            logged = controller_of(header)
            self.num_layers, self.num_experts = logged.num_layers, logged.num_experts
            self.top_k = logged.top_k
            self.recorded = [seen for seen in map(self._read, lines) if seen is not None]
        if not self.recorded:
            raise ValueError(f"{path} holds no decode step with its active experts and demand")
        sizes = self.num_layers, self.num_experts, self.top_k
        self._estimator = Estimator(logged.config, *sizes)
        self._quality = Quality(logged.config.prior_kl)
        for seen in self.recorded:
            self._learn(seen)
        if recorded is not None:
            self.recorded = self._of_passes(recorded)
        self.loads = [
            Load(seen.rows, max(0.0, (seen.itl_ms or seen.step_ms) - seen.step_ms))
            for seen in self.recorded
        ]
        self._next = 0

    @property
    def slope_ms(self) -> float:
        """What an expert costs in a layer, as fitted on the decision log."""
        return self._estimator.cost.slope_ms

    def run(self, load: Load, setting: Setting) -> tuple[Observation, Sample]:
        """The next recorded step under another setting; `load` is its own."""
        seen = self.recorded[self._next]
        self._next += 1
        demand, budget = setting
        active = self._active(seen, demand, [float(each) for each in budget])
        before, after = float(sum(seen.active_experts)), sum(active)
        step_ms = seen.step_ms + self._estimator.cost.slope_ms * (after - before)
        step_ms = max(step_ms, 0.05 * seen.step_ms)
        gap_ms = step_ms + load.outside_ms
        mass = 1.0 - math.sqrt(min(1.0, self._loss(seen, demand)))
        played = replace(
            seen,
            step=self._next,
            step_ms=step_ms,
            itl_ms=gap_ms,
            active_experts=active,
            retained_mass=[mass] * self.num_layers,
            demand=demand,
            budget_applied=tuple(budget),
            shadow_kl=None,
            shadow_agreement=None,
        )
        natural = sum(self._active(seen, 1.0, [float(self.num_experts)] * self.num_layers))
        return played, Sample(load, demand, gap_ms, after, natural, mass)

    def _read(self, line: str) -> Observation | None:
        try:
            record = json.loads(line)
            if record["call"] != "step":
                return None
            seen = Observation.from_dict(record["with"])
            is_whole = len(seen.active_experts) == self.num_layers and sum(seen.active_experts) > 0
            is_usable = seen.phase is Phase.DECODE and seen.rows > 0 and 0.0 < seen.step_ms < 1e6
            is_usable = is_usable and seen.demand is not None and 0.0 <= seen.demand <= 1.0
        except (TypeError, ValueError, KeyError):  # a torn line, an observation of anything
            return None
        return seen if is_whole and is_usable else None

    def _of_passes(self, recorded: Path) -> list[Observation]:
        slots = sorted({Batch.seen(seen).key[1] for seen in self.recorded})
        steps = []
        for number, each in enumerate(passes.read(recorded)):
            slot = next((slot for slot in slots if slot >= each.rows), 0)
            seen = Observation(
                step=number,
                phase=Phase.DECODE,
                rows=each.rows,
                slot=slot,
                step_ms=each.step_ms,
                itl_ms=each.step_ms + each.outside_ms,
                active_experts=(),
                kv_tokens=each.kv_tokens,
                demand=1.0,
            )
            forecast = self._estimator.forecast(Batch.seen(seen))
            if forecast is None:
                raise ValueError("the decision log is too short to tell how many experts are read")
            active = self._estimator.per_layer(forecast.active(1.0))
            steps.append(replace(seen, active_experts=active))
        if not steps:
            raise ValueError(f"{recorded} holds no pass that only decodes")
        return steps

    def _learn(self, seen: Observation) -> None:
        demand = float(seen.demand or 0.0)
        full = (self.num_experts,) * self.num_layers
        active = [float(each) for each in seen.active_experts]
        applied = Applied(demand, full, is_certain=True)
        batch = Batch.seen(seen)
        self._estimator.learn(batch, applied, active, seen.step_ms, seen.step_ms)
        self._quality.learn(batch.key, batch.flexible, demand, seen.retained_mass, None, None)

    def _active(self, seen: Observation, demand: float, cap: list[float]) -> list[float]:
        forecast = self._estimator.forecast(Batch.seen(seen))
        ratio = 1.0
        if forecast is not None:
            ratio = forecast.active(demand) / max(forecast.active(float(seen.demand or 0.0)), 1e-9)
        return [
            min(max(each * ratio, min(each, self.top_k)), most, self.num_experts)
            for each, most in zip(seen.active_experts, cap, strict=True)
        ]

    def _loss(self, seen: Observation, demand: float) -> float:
        lost = 1.0 - float(seen.demand or 0.0)
        if lost > 0.0 and len(seen.retained_mass):
            loss = sum((1.0 - each) ** 2 for each in seen.retained_mass) / len(seen.retained_mass)
            return loss * ((1.0 - demand) / lost) ** 2
        return self._quality.loss_at(Batch.seen(seen).key, demand)
