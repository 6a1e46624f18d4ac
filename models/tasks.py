"""Two tasks with checkable answers, generated from seeds: `math` and `code`.

The split is by construction: a hash of a problem's parameters (its key) decides whether it is
for training, validation or testing, so no test problem's parameters can occur in training,
whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from models import tasks_code, tasks_math
from models.problem import Draft, Problem

__all__ = ["SPLITS", "TASKS", "Problem", "is_correct", "problems", "split_of", "stream"]

TASKS = {"math": tasks_math, "code": tasks_code}
SPLITS = ("train", "validation", "test")
BUCKETS, TEST_BUCKETS, VALIDATION_BUCKETS = 100, 10, 2
LARGEST_COUNT = 100_000


def split_of(key: str) -> str:
    """The split that a problem's parameters belong to."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % BUCKETS
    if bucket < TEST_BUCKETS:
        return "test"
    return "validation" if bucket < TEST_BUCKETS + VALIDATION_BUCKETS else "train"


def drafts(task: str, split: str, seed: int) -> Iterator[Draft]:
    """An endless stream of one split's problems with their keys, repeats included."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed!r}")
    return _draw(task, split, seed)


def _draw(task: str, split: str, seed: int) -> Iterator[Draft]:
    rng = random.Random(f"{task}/{split}/{seed}")
    while True:
        draft = TASKS[task].draw(rng)
        if split_of(draft.key) == split:
            yield draft


def stream(task: str, split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of one split's problems, repeats included."""
    return (draft.finish() for draft in drafts(task, split, seed))


def problems(task: str, split: str, count: int, seed: int) -> list[Problem]:
    """`count` problems with distinct parameters, the same ones for the same arguments."""
    if not 0 <= count <= LARGEST_COUNT:
        raise ValueError(f"count must be in 0..{LARGEST_COUNT}, got {count!r}")
    distinct: dict[str, Problem] = {}
    for draft in drafts(task, split, seed):
        if len(distinct) == count:
            break
        if draft.key not in distinct:
            distinct[draft.key] = draft.finish()
    return list(distinct.values())


def is_correct(problem: Problem, completion: str) -> bool:
    """Whether a completion solves the problem: its last `####` number, or its unit tests."""
    correct: bool = TASKS[problem.task].is_correct(problem, completion)
    return correct
