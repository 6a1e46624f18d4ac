"""Parsers of settings: one for each kind of value.

Each takes text or a value of the right type and raises ValueError or TypeError for all others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lynx_controller.fleet.store import open_store

T = TypeVar("T")


def number(text: object) -> float:
    """A finite number."""
    if isinstance(text, bool):
        raise ValueError
    value = float(text)  # type: ignore[arg-type]
    if not math.isfinite(value):
        raise ValueError
    return value


def in_range(low: float, high: float, *, is_open_low: bool = False) -> Callable[[object], float]:
    """A number in [low, high], or in (low, high]."""

    def parse(text: object) -> float:
        value = number(text)
        if value > high or value < low or (is_open_low and value == low):
            raise ValueError
        return value

    return parse


def whole(low: int, high: int) -> Callable[[object], int]:
    """A whole number in [low, high]."""

    def parse(text: object) -> int:
        value = number(text)
        if value != int(value) or not low <= value <= high:
            raise ValueError
        return int(value)

    return parse


def one_of(*names: str) -> Callable[[object], str]:
    """One of these words."""

    def parse(text: object) -> str:
        if text not in names:
            raise ValueError
        return str(text)

    return parse


def switch(*names: str) -> Callable[[object], str]:
    """One of these words; YAML reads on and off as true and false."""
    parse = one_of(*names)
    return lambda text: parse(("off", "on")[text] if isinstance(text, bool) else text)


def word_or(words: tuple[str, ...], parse: Callable[[object], T]) -> Callable[[object], str | T]:
    """One of these words, or a value of ``parse``."""
    return lambda text: str(text) if text in words else parse(text)


def cap(text: object) -> int | str:
    """A cap on active experts: a count (int), or a share of E kept as text (``"25%"``)."""
    if isinstance(text, str) and text.endswith("%"):
        return f"{in_range(0, 100, is_open_low=True)(text[:-1]):g}%"
    return whole(1, 1 << 20)(text)


def share(text: object) -> float:
    """A share in (0, 1], also as a percentage."""
    if isinstance(text, str) and text.endswith("%"):
        return in_range(0, 100, is_open_low=True)(text[:-1]) / 100
    return in_range(0, 1, is_open_low=True)(text)


def writable_file(text: object) -> str:
    """Absolute path of a file that can be written, or none."""
    path = Path(str(text)).absolute()
    if str(text) == "none":
        return "none"
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError
    return str(path)


def store(text: object) -> str:
    """Address of a fleet store, or none."""
    if str(text) != "none":
        open_store(str(text)).close()  # connects later
    return str(text)


def readable_file(text: object) -> str:
    """Absolute path of a file that can be read, or none."""
    path = Path(str(text)).absolute()
    if str(text) == "none":
        return "none"
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError
    return str(path)
