"""Cost of an update: one step of 64 layers, and the alternatives that learn the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.cellscope import alarms, contenders
from benchmarks.cellscope.fleet import NUM_LAYERS, Fleet
from benchmarks.cellscope.models import groups
from benchmarks.cellscope.models.cellscope import CellScope, boosted_trees
from benchmarks.cellscope.models.drift import Drift
from benchmarks.cellscope.models.sites import Recorder, Sites, Statistics

UPDATED_LAYERS: Final = 64
Figures = dict[str, float]


def timed_us(work: Callable[[int], object], repeats: int) -> Figures:
    taken = []
    for i in range(repeats // 10):  # warm
        work(i)
    for i in range(repeats):
        start = time.perf_counter()
        work(i)
        taken.append(1e6 * (time.perf_counter() - start))
    p10, p50, p90 = np.percentile(taken, [10, 50, 90])
    return {"p10_us": float(p10), "p50_us": float(p50), "p90_us": float(p90)}


def update_cost(seed: int = 0) -> dict[str, Figures]:
    """Microseconds of one step of 64 layers, and of each alternative for the same step."""
    fleet = Fleet(seed, num_replicas=UPDATED_LAYERS // NUM_LAYERS)
    window = fleet.draw(16, 0)
    fit = contenders.fit_ours(fleet, window)
    sites, drift = fit.sites(), Drift(fleet.replica, fleet.layer)
    z, us = alarms.samples(fleet, 4000, 3)
    recorder = Recorder(z.shape[1], z.shape[2])

    def online(i: int) -> None:
        drift.watch(sites.update(z[i], us[i]))
        recorder.add(z[i], us[i])

    alone = Sites(sites.mean[:, :1].copy(), sites.covariance[:, :, :1].copy(), sites.noise)
    one_z, one_us = z[:, :, :1].copy(), us[:, :1].copy()
    layout, probe = contenders.layout_of(fleet), fleet.probe()
    statistics = Statistics.of_rows(window.physics, window.us)
    rows = contenders.both(window)
    literal = CellScope(contenders.CELLSCOPE_THRESHOLD).fit(rows, window.us)
    flat, log_us = rows.reshape(-1, rows.shape[2]), np.log(window.us).ravel()
    single = boosted_trees()(n_estimators=40, max_depth=3, random_state=0, warm_start=True)
    single.fit(flat, log_us)

    def grow(_: int) -> None:
        single.set_params(n_estimators=single.n_estimators + 10)
        single.fit(flat, log_us)

    return {
        "update, 64 layers": timed_us(lambda i: sites.update(z[i], us[i]), 4000),
        "update + drift + statistics, 64 layers": timed_us(online, 4000),
        "update, whole step as one site": timed_us(
            lambda i: alone.update(one_z[i], one_us[i]), 4000
        ),
        "refit of all 64 sites, judged": timed_us(
            lambda _: groups.fit(statistics, layout, probe), 5
        ),
        "literal CellScope: site weights": timed_us(
            lambda i: literal.update(rows[:, i % 16], window.us[:, i % 16]), 20
        ),
        "single model: append 10 trees": timed_us(grow, 5),
        "single model: rebuild": timed_us(
            lambda _: boosted_trees()(n_estimators=40, max_depth=3).fit(flat, log_us), 5
        ),
        "literal CellScope: rebuild": timed_us(
            lambda _: CellScope(contenders.CELLSCOPE_THRESHOLD).fit(rows, window.us), 3
        ),
    }
