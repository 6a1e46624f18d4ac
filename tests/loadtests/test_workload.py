"""The questions of the load, and their marking."""

from __future__ import annotations

from loadtests.record import Record
from loadtests.workload import check, questions


def test_tasks_take_turns_and_repeat_by_seed() -> None:
    asked = questions(5, seed=3)
    assert [question.task for question in asked] == ["math", "code", "math", "code", "math"]
    assert [question.index for question in asked] == [0, 0, 1, 1, 2]
    assert asked == questions(5, seed=3)
    assert asked != questions(5, seed=4)
    assert questions(0, seed=3) == []


def test_answers_are_marked_by_the_problem() -> None:
    asked = questions(2, seed=3)
    right = [question.problem.solution for question in asked]
    records = [
        Record(index, "math", 0, 0.0, 0.0, 1.0, text=text, error=error)
        for index, text, error in ((0, right[0], None), (1, right[1], None), (0, "?", None))
    ]
    failed = Record(0, "math", 0, 0.0, 0.0, 1.0, text=right[0], error="cut off")
    verdicts = [record.correct for record in check([*records, failed], asked)]
    assert verdicts == [True, True, False, False]
