"""One problem of a task: its prompt, a reference completion and the check of an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """`answer` is the final number for maths and the unit tests' source for code."""

    task: str
    prompt: str
    solution: str
    answer: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A drawn problem's parameters (`key`), which decide its split, and how to finish it."""

    key: str
    finish: Callable[[], Problem]
