"""The fleet's job: fit the step cost of every model and block in a store, once or periodically.

lynx-sglang fleet-refit redis://127.0.0.1:6379/0 --every 60
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict

from lynx_controller.fleet.exchange import COST, STATISTICS
from lynx_controller.fleet.statistics import StepStatistics, fit
from lynx_controller.fleet.store import Store, StoreError, open_store


def refit(store: Store, model: str) -> dict[str, int]:
    """Fit a model's replicas and store the cost of each block; numbers of replicas by block.

    Raises StoreError; ValueError, LookupError or TypeError for statistics that are none.
    """
    blocks: dict[str, list[StepStatistics]] = {}
    for _, text in sorted(store.find(f"{STATISTICS}/{model}/").items()):
        record = json.loads(text)
        statistics = StepStatistics.from_dict(record["statistics"])
        blocks.setdefault(record["block"], []).append(statistics)
    for block, parts in blocks.items():
        store.put(f"{COST}/{model}/{block}", json.dumps(asdict(fit(parts))))
    return {block: len(parts) for block, parts in blocks.items()}


def refit_all(url: str) -> list[str]:
    """Fit every model; one line each, with the reason of a failure. StoreError: no store."""
    store = open_store(url)
    try:
        models = sorted({key.split("/")[1] for key in store.find(f"{STATISTICS}/")})
        return [attempt(store, model) for model in models]
    finally:
        store.close()


def attempt(store: Store, model: str) -> str:
    try:
        sizes = refit(store, model)
    except (StoreError, ValueError, LookupError, TypeError) as error:
        return f"{model}: FAILED: {error!r}"
    return f"{model}: {sum(sizes.values())} replicas in {len(sizes)} block(s)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", help="sqlite:///PATH, redis://HOST:PORT/DB or unix://PATH")
    parser.add_argument("--every", type=float, metavar="S", help="repeat every S seconds")


def run(url: str, every_s: float | None = None) -> None:
    """Once, or until stopped. SystemExit without a store, unless it repeats."""
    while True:
        try:
            print("\n".join(refit_all(url) or ["no replica has shipped"]), flush=True)
        except StoreError as error:
            if every_s is None:
                raise SystemExit(f"{url}: {error}") from None
            print(f"{url}: {error}", flush=True)
        if every_s is None:
            return
        time.sleep(every_s)
