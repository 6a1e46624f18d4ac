"""Progress of long programs in plain lines: what runs now, how far it is, what comes next."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

EVERY_S = 15.0  # between two lines about one stage
Item = TypeVar("Item")


class Stages:
    """Announces a program's stages in their order, each with its number and the one after it."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._number = 0
        self._began_s = time.monotonic()

    @contextmanager
    def next(self, expected_s: float | None = None) -> Iterator[None]:
        """Run the next stage in a ``with`` block; every EVERY_S a line says that it still runs."""
        name, *later = self.names[self._number :]
        self._number += 1
        began_s = time.monotonic()
        line = f"[{began_s - self._began_s:4.0f} s] {self._number} of {len(self.names)}: {name}"
        line += f" ({duration(expected_s)})" if expected_s is not None else ""
        say(line + (f"; next: {later[0]}" if later else ""))
        is_over = threading.Event()

        def tick() -> None:
            while not is_over.wait(EVERY_S):
                of = f" of {duration(expected_s)}" if expected_s is not None else ""
                say(f"         {name}: {duration(time.monotonic() - began_s)}{of}")

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def track(
    items: Sequence[Item], name: str, describe: Callable[[Item], object] = str
) -> Iterator[Item]:
    """``items`` one by one; a line every EVERY_S says which one runs and the time left."""
    began_s = time.monotonic()
    said_s = -EVERY_S
    for done, item in enumerate(items):
        passed_s = time.monotonic() - began_s
        if passed_s - said_s >= EVERY_S:
            left = f"; {duration(passed_s / done * (len(items) - done))} left" if done else ""
            say(f"{name} {done + 1} of {len(items)}: {describe(item)}{left}")
            said_s = passed_s
        yield item


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
