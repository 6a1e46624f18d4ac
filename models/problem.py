"""One problem of a task: what is asked, a reference completion and what a right answer is."""

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
