"""Questions of a load: both tasks in turn, the same problems for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtests.record import Record
from models.tasks import TASKS, Problem, is_correct, problems

MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Question:
    """A problem and its place among its task's."""

    task: str
    index: int
    problem: Problem


def questions(count: int, *, seed: int, split: str = "test") -> list[Question]:
    """``count`` questions, tasks in turn."""
    per_task = -(-count // len(TASKS))
    pools = [problems(task, split, per_task, seed) for task in TASKS]
    return [
        Question(problem.task, index, problem)
        for index, group in enumerate(zip(*pools, strict=True))
        for problem in group
    ][:count]


def check(records: Sequence[Record], asked: Sequence[Question]) -> list[Record]:
    """``records`` with their verdicts. It keeps the cores busy, so run it after the load."""
    return [
        replace(
            record,
            correct=record.error is None and is_correct(asked[record.index].problem, record.text),
        )
        for record in records
    ]
