"""CellScope's experiment on a serving fleet: accuracy by number of samples, update cost, drift.

    python -m benchmarks.cellscope.experiment [--seeds 10] [--recorded MODEL=LOG ...]
    python -m benchmarks.cellscope.experiment --tune      # the constants, on seeds kept for that

Prints one report, writes benchmarks/results/cpu/cellscope.json. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

# One core, as a controller has; read by BLAS when NumPy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.cellscope import alarms, contenders, recorded
from benchmarks.cellscope.cost import update_cost
from benchmarks.cellscope.fleet import SAMPLES, Array, Fleet, Window
from benchmarks.cellscope.models import groups
from benchmarks.cellscope.models.sites import Statistics
from benchmarks.cellscope.report import header, report
from loadtests.progress import Stages

TUNING: Final = range(1000, 1003)
PUBLISHED: Final = {"accuracy_at_shortest": [2.5, 4.4], "update_cost": [2.2, 4.8]}
Figures = dict[str, float]


def errors(predict: contenders.Predict, test: Window) -> tuple[float, float]:
    """Median absolute percentage error against noisy times, and against noise-free ones."""
    us = predict(test)
    noisy, clean = (100.0 * np.median(np.abs(us / each - 1.0)) for each in (test.us, test.clean_us))
    return float(noisy), float(clean)


def accuracy(seeds: range) -> tuple[dict[str, dict[str, Figures]], dict[str, Figures]]:
    """Errors by model and samples per site, over fleets; and what became of the groupings."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    kept: dict[str, list[str]] = {str(n): [] for n in SAMPLES}
    for seed in seeds:
        fleet = Fleet(seed)
        test = fleet.draw(128, 1)
        for n in SAMPLES:
            window = fleet.draw(n, 100 + n)
            for name, model in contenders.MODELS.items():
                if name == "ours":
                    fit = contenders.fit_ours(fleet, window)
                    kept[str(n)].append(fit.verdict.structure.value)
                    predict = contenders.law_of(fit)
                else:
                    predict = model(fleet, window)
                found.setdefault((name, n), []).append(errors(predict, test))
    table: dict[str, dict[str, Figures]] = {name: {} for name in contenders.MODELS}
    for (name, n), pairs in found.items():
        noisy, clean = np.array(pairs).T
        low, middle, high = np.percentile(noisy, [25, 50, 75])
        table[name][str(n)] = {
            "median": float(middle),
            "quartile_low": float(low),
            "quartile_high": float(high),
            "median_noise_free": float(np.median(clean)),
        }
    verdicts = {
        n: {each.value: float(values.count(each.value)) for each in groups.Structure}
        for n, values in kept.items()
    }
    return table, verdicts


def newcomer(seeds: range) -> dict[str, dict[str, float]]:
    """A replica never seen joins a fleet with 16 samples per site: error after n of its own."""
    found: dict[str, dict[int, list[float]]] = {"ours": {}, "local physics": {}, "local raw": {}}
    for seed in seeds:
        fleet = Fleet(seed)
        away = fleet.replica == int(fleet.replica[-1])
        window, test = fleet.draw(16, 0), fleet.draw(128, 1)
        old = Window(*(getattr(window, each)[~away] for each in Window.__slots__))
        layout = groups.Layout.of(
            fleet.replica[~away].tolist(),
            fleet.layer[~away].tolist(),
            [b for b, is_away in zip(fleet.block, away, strict=True) if not is_away],
        )
        fit = groups.fit(Statistics.of_rows(old.physics, old.us), layout, fleet.probe(), seed)
        block = dict(zip(fleet.block, layout.block.tolist(), strict=False))[fleet.block[-1]]
        sites = fit.newcomer(block, fleet.layer[away].tolist())
        own = Window(*(getattr(test, each)[away] for each in Window.__slots__))
        for n in (0, 1, 2, 4, 8):
            found["ours"].setdefault(n, []).append(errors(contenders.linear(sites.mean.T), own)[0])
            first = Window(*(getattr(window, each)[:, : max(n, 1)] for each in Window.__slots__))
            for name in ("local physics", "local raw"):
                if n:
                    alone = contenders.MODELS[name](fleet, first)
                    us = alone(test)[away]
                    found[name].setdefault(n, []).append(errors(always(us), own)[0])
            for i in range(n, {0: 1, 1: 2, 2: 4, 4: 8, 8: 8}[n]):
                sites.update(window.physics[away, i].T.copy(), window.us[away, i].copy())
    return {
        name: {str(n): float(np.median(values)) for n, values in by_n.items()}
        for name, by_n in found.items()
    }


def always(us: Array) -> contenders.Predict:
    return lambda _: us


def bars(
    table: dict[str, dict[str, Figures]], costs: dict[str, Figures], drift: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    ours, raw, physics = table["ours"], table["local raw"], table["local physics"]
    ratio = ours["4"]["median"] / raw["4"]["median"]
    worst = max(
        ours[n][kind] / physics[n][kind] - 1.0
        for n in ours
        for kind in ("median", "median_noise_free")
    )
    online_us = costs["update + drift + statistics, 64 layers"]["p50_us"]
    late = drift["delays"]["x1.2 local"]["delay_p50"]
    rate = drift["false_alarms"]["per_10000_steps"]
    return {
        "error at 4 samples / local raw <= 0.5": {"measured": ratio, "met": ratio <= 0.5},
        "worst against local physics <= +5 %": {"measured": 100 * worst, "met": worst <= 0.05},
        "online us per step, 64 layers <= 20": {"measured": online_us, "met": online_us <= 20.0},
        "steps until a 20 % change of one site <= 5": {"measured": late, "met": late <= 5.0},
        "false alarms per 10,000 steps < 1": {"measured": rate, "met": rate < 1.0},
    }


def ratios(table: dict[str, dict[str, Figures]], costs: dict[str, Figures]) -> dict[str, Figures]:
    """Our figures for the ratios that the paper publishes."""
    online = costs["update + drift + statistics, 64 layers"]["p50_us"]
    literal = costs["literal CellScope: site weights"]["p50_us"]
    grow, rebuild = (
        costs[f"single model: {each}"]["p50_us"] for each in ("append 10 trees", "rebuild")
    )

    def accuracy_at(n: str, model: str, baseline: str) -> float:
        return table[baseline][n]["median"] / table[model][n]["median"]

    return {
        "error of local raw / ours": {n: accuracy_at(n, "ours", "local raw") for n in ("2", "4")},
        "error of local physics / ours": {
            n: accuracy_at(n, "ours", "local physics") for n in ("2", "4")
        },
        "error of local raw / literal": {
            n: accuracy_at(n, "literal CellScope", "local raw") for n in ("2", "4")
        },
        "cost of incremental single model / update": {
            "ours": grow / online,
            "literal": grow / literal,
        },
        "cost of rebuild / update": {"ours": rebuild / online, "literal": rebuild / literal},
    }


def tune() -> None:
    """Print the trials that the constants in contenders.py and drift.py were chosen from."""
    trials: list[tuple[str, Callable[..., contenders.Predict]]] = [
        *(
            (f"raw ridge {x}", partial(contenders.local_raw, ridge=x))
            for x in (0.03, 0.1, 0.3, 1.0)
        ),
        *(
            (f"physics spread {x}", partial(contenders.local_physics, spread=x))
            for x in (0.2, 0.3, 0.5, 1.0)
        ),
        *(
            (f"cellscope threshold {x}", partial(contenders.cellscope, threshold=x))
            for x in (0.5, 1.0, 2.0, 4.0)
        ),
    ]
    for name, model in trials:
        row = []
        for n in SAMPLES:
            fleets = [Fleet(seed) for seed in TUNING]
            found = [errors(model(f, f.draw(n, 100 + n)), f.draw(128, 1))[0] for f in fleets]
            row.append(float(np.median(found)))
        print(name, *(f"{value:.2f}" for value in row), f"mean {np.mean(row):.2f}")
    print("allowance, threshold, false alarms per 10,000 steps, steps to notice 20 % on one site")
    for setting in alarms.tune(TUNING, 20000):
        print(*(f"{value:.2f}" for value in setting))


def log_of(text: str) -> tuple[Path, Path]:
    model, _, log = text.partition("=")
    for path in (Path(model, "config.json"), Path(log)):
        if not path.is_file():
            raise argparse.ArgumentTypeError(f"expected MODEL=LOG, got {text!r}: no {path}")
    return Path(model), Path(log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--alarm-steps", type=int, default=20000, help="quiet steps per fleet")
    parser.add_argument(
        "--recorded", nargs="*", default=[], type=log_of, metavar="MODEL=LOG",
        help="models' folders and decision logs of servers that ran them",
    )  # fmt: skip
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/cellscope.json"))
    options = parser.parse_args()
    if options.tune:
        tune()
        return
    seeds = range(options.seeds)
    record = header(options.seeds)
    record["published"] = PUBLISHED
    names = ("cost of an update", "accuracy", "newcomer", "drift")
    stages = Stages(*names, *(("recorded servers",) if options.recorded else ()))
    with stages.next():
        record["cost"] = update_cost()
    with stages.next():
        record["accuracy"], record["verdicts"] = accuracy(seeds)
    with stages.next():
        record["newcomer"] = newcomer(seeds)
    with stages.next():
        record["drift"] = {
            "delays": alarms.delays(range(min(options.seeds, 5)), 8),
            "false_alarms": alarms.false_alarms(seeds, options.alarm_steps),
            "false_alarms_with_stalls": alarms.false_alarms(
                seeds, options.alarm_steps // 4, alarms.STALL
            ),
        }
    record["ratios"] = ratios(record["accuracy"], record["cost"])
    record["bars"] = bars(record["accuracy"], record["cost"], record["drift"])
    record["recorded"] = None
    if options.recorded:
        with stages.next():
            fleet = recorded.Recorded(options.recorded)
            found = recorded.accuracy(fleet, seeds)
        record["recorded"] = {"sites": len(fleet.replica), "accuracy": found}
    print(report(record))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
