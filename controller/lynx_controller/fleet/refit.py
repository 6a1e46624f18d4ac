"""The fleet's job: fit all replicas of every model in a store, once or every so often.

    python -m lynx_controller.fleet.refit redis://127.0.0.1:6379/0 --every 60

Models are fitted side by side on Ray where it is installed, one after the other where it is not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from lynx_controller.fleet.exchange import refit
from lynx_controller.fleet.store import StoreError, open_store


def models(url: str) -> list[str]:
    """Whose replicas have shipped."""
    store = open_store(url)
    try:
        return sorted({key.split("/")[1] for key in store.find("share/")})
    finally:
        store.close()


def refit_model(url: str, model: str) -> str:
    """Fit one model's replicas; one line about it."""
    store = open_store(url)
    try:
        fit = refit(store, model)
    finally:
        store.close()
    if fit is None:
        return f"{model}: nobody has shipped"
    number = len(fit.layout.block_of_replica)
    return f"{model}: {number} replicas, structure {fit.verdict.structure.value}"


def refit_all(url: str) -> list[str]:
    """Fit every model; where one fails, its line says why. Raises StoreError without a store."""
    if find_spec("ray") is None:
        return [attempt(refit_model, url, model) for model in models(url)]
    ray = import_module("ray")
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    remote = ray.remote(attempt)
    lines: list[str] = ray.get([remote.remote(refit_model, url, model) for model in models(url)])
    return lines


def attempt(fit: Callable[[str, str], str], url: str, model: str) -> str:
    try:
        return fit(url, model)
    except (StoreError, ValueError, KeyError) as error:  # lost, or shares that don't fit together
        return f"{model}: FAILED: {error}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", help="sqlite:///PATH, redis://HOST:PORT/DB or unix://PATH")
    parser.add_argument("--every", type=float, metavar="S", help="again after so many seconds")


def run(url: str, every_s: float | None = None) -> None:
    """Once, or until stopped; SystemExit without a store, unless it is to be tried again."""
    while True:
        try:
            print("\n".join(refit_all(url) or ["nobody has shipped"]), flush=True)
        except StoreError as error:
            if every_s is None:
                raise SystemExit(f"{url}: {error}") from None
            print(f"{url}: {error}", flush=True)
        if every_s is None:
            return
        time.sleep(every_s)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lynx_controller.fleet.refit", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(argv)
    run(options.store, options.every)


if __name__ == "__main__":
    main()
