"""Steps of real servers, as one more fleet. Only whole-step times: a site is a replica's slot.

Each line is an `Observation.to_dict()`, and may carry `replica` (default: one) and `expert_bytes`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from fleet import SAMPLES

from lynx_controller import Observation, Phase, groups
from lynx_controller.features import Features
from lynx_controller.site import Statistics

WARM_UP: Final = 5  # first steps of a site, dropped
SHORTEST: Final = 160  # steps that a site must have
EXPERT_BYTES: Final = 1e6  # where it is not said: a unit, no more


def load(path: Path) -> dict[tuple[str, int], list[tuple[Observation, float]]]:
    sites: dict[tuple[str, int], list[tuple[Observation, float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        replica = str(record.pop("replica", "0"))
        expert_bytes = float(record.pop("expert_bytes", EXPERT_BYTES))
        seen = Observation.from_dict(record)
        if seen.phase is Phase.DECODE and seen.step_ms > 0.0:
            sites.setdefault((replica, seen.slot), []).append((seen, expert_bytes))
    return {at: steps[WARM_UP:] for at, steps in sites.items() if len(steps) >= SHORTEST}


def replay(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {"absent": "no recording given: only the made-up fleet was measured"}
    sites = load(path)
    if len(sites) < 2:
        return {"absent": f"{len(sites)} site(s) with {SHORTEST} decode steps; two are needed"}
    shortest = min(len(steps) for steps in sites.values())
    z = np.empty((len(sites), shortest, 4))
    us = np.empty((len(sites), shortest))
    for i, steps in enumerate(sites.values()):
        for j, (seen, expert_bytes) in enumerate(steps[:shortest]):
            active = float(sum(seen.active_experts))
            z[i, j] = Features(expert_bytes).matrix(seen.rows, seen.slot, active, seen.kv_tokens)
            us[i, j] = 1e3 * seen.step_ms
    replicas, slots = [at[0] for at in sites], [at[1] for at in sites]
    layout = groups.Layout.of(replicas, slots, ["recorded"] * len(sites))
    result: dict[str, Any] = {"sites": len(sites), "steps": shortest, "ours": {}, "local": {}}
    test_z, test_us = z[:, shortest // 2 :], us[:, shortest // 2 :]
    for n in SAMPLES:
        statistics = Statistics.of_rows(z[:, :n], us[:, :n])
        fit = groups.fit(statistics, layout, z[:, : shortest // 2 : 20].reshape(-1, 4)[:12])
        alone = groups.data_of(statistics, layout, fit.scale, [0, 1]).alone()[0]
        for name, law in (("ours", fit.effects.mean), ("local", alone)):
            predicted = (test_z * (fit.scale * law)[:, None]).sum(axis=2)
            result[name][str(n)] = float(100.0 * np.median(np.abs(predicted / test_us - 1.0)))
    return result
