import itertools
import time

import pytest

from models import tasks
from models.sandbox import Sandbox
from models.tasks import Problem, is_correct, problems


@pytest.mark.parametrize("task", tasks.TASKS)
def test_no_key_occurs_in_two_splits(task: str) -> None:
    keys = {
        split: {draft.key for draft in itertools.islice(tasks.drafts(task, split, seed=3), 400)}
        for split in tasks.SPLITS
    }
    for one, other in itertools.combinations(tasks.SPLITS, 2):
        assert keys[one].isdisjoint(keys[other])
    for split, drawn in keys.items():
        assert {tasks.split_of(key) for key in drawn} == {split}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_test_prompts_do_not_occur_in_training(task: str) -> None:
    training = {problem.prompt for problem in problems(task, "train", 2000, seed=7)}
    assert training.isdisjoint(problem.prompt for problem in problems(task, "test", 300, seed=7))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_problems_are_deterministic_and_distinct(task: str) -> None:
    drawn = problems(task, "test", 200, seed=5)
    assert drawn == problems(task, "test", 200, seed=5)
    assert drawn != problems(task, "test", 200, seed=6)
    assert drawn[:50] == problems(task, "test", 50, seed=5)
    assert len({problem.prompt for problem in drawn}) == 200


@pytest.mark.parametrize("task", tasks.TASKS)
def test_reference_solutions_are_correct(task: str) -> None:
    for problem in problems(task, "test", 200, seed=1):
        assert problem.task == task
        assert is_correct(problem, problem.solution), problem


def test_a_changed_number_is_wrong() -> None:
    for problem in problems("math", "test", 200, seed=1):
        wrong = problem.solution.replace(
            f"#### {problem.answer}", f"#### {int(problem.answer) + 1}"
        )
        assert not is_correct(problem, wrong)
        assert not is_correct(problem, problem.solution.replace("####", ""))
        assert not is_correct(problem, "")


def test_the_last_mark_counts() -> None:
    problem = Problem("math", "", "", "42")
    assert is_correct(problem, "#### 41\n#### 42")
    assert not is_correct(problem, "#### 42\n#### 41")
    assert not is_correct(problem, "#### 42 or 43")


def test_a_function_that_returns_something_else_is_wrong() -> None:
    for problem in problems("code", "test", 200, seed=1):
        head, _, result = problem.solution.rpartition("return ")
        assert not is_correct(problem, f"{head}return ({result}, 1)")
        assert not is_correct(problem, "")


def test_most_dropped_stages_are_noticed() -> None:
    """Some stages do nothing (sorting before a sum), so not every one can be."""
    noticed = 0
    drawn = problems("code", "test", 200, seed=1)
    for problem in drawn:
        lines = problem.solution.splitlines()
        noticed += not is_correct(problem, "\n".join([lines[0], *lines[2:]]))
    assert noticed >= 120


COUNTING = Problem("code", "", "", "assert f(2) == 3")


@pytest.mark.parametrize(
    "completion",
    [
        "import os\ndef f(x):\n    return x + 1",
        "def f(x):\n    import os\n    return x + 1",
        "def f(x):\n    __import__('os')\n    return x + 1",
        "def f(x):\n    open('/etc/passwd')\n    return x + 1",
        "def f(x):\n    ().__class__\n    return x + 1",
        "def f(x):\n    return f(x)",
        "def f(x):\n    return [0] * 10 ** 12",
        "def f(x)",
    ],
)
def test_what_the_sandbox_refuses(completion: str) -> None:
    assert is_correct(COUNTING, "def f(x):\n    return x + 1")
    assert not is_correct(COUNTING, completion)
    assert is_correct(COUNTING, "def f(x):\n    return x + 1")


def test_an_endless_loop_is_wrong_and_ends() -> None:
    sandbox = Sandbox(time_limit_s=0.2)
    start = time.monotonic()
    assert not sandbox.passes("while True:\n    pass", "")
    assert not sandbox.passes("def f(x):\n    while True:\n        pass", "f(1)")
    assert time.monotonic() - start < 10
    assert sandbox.passes("def f(x):\n    return x", "assert f(1) == 1")
    sandbox.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prose", "test", 1, 0), "task must be one of math, code, got 'prose'"),
        (("math", "dev", 1, 0), "split must be one of train, validation, test, got 'dev'"),
        (("math", "test", -1, 0), r"count must be in 0\.\.100000, got -1"),
        (("math", "test", 1, -2), "seed must be 0 or more, got -2"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, str, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems(*arguments)
