"""Problem sets with answers that a program can check.

``gsm8k=FILE`` and ``humaneval=FILE`` read the public files (JSON lines, gzipped or not);
``bundled`` draws the tasks of the bundled model from ``models/`` of a checkout.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from lynx_sglang.evaluation.execution import passes
from lynx_sglang.evaluation.server import EvaluationError

BUNDLED_SEED = 2024  # of the test split, as models/evaluate.py has it
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
CODE_BLOCK = re.compile(r"```(?:python)?\n(.*?)```", re.DOTALL)
GSM8K = "{}\n\nThink step by step. End with a line of the form: #### number"
HUMANEVAL = (
    "Complete this function. Answer with all of it in one block of code.\n\n```python\n{}```"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """``check`` returns whether an answer solves it; it may take seconds."""

    set: str
    index: int
    prompt: str  # what the user says
    check: Callable[[str], bool] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.set}/{self.index}"


def load(spec: str, count: int) -> list[Problem]:
    """The first ``count`` problems of a set.

    Raises:
        EvaluationError: no such set, or its file does not hold one.
    """
    name, _, path = spec.partition("=")
    if spec == "bundled":
        return bundled(count)
    if name not in READERS or not path:
        raise EvaluationError(
            f"--problems: expected bundled, gsm8k=FILE or humaneval=FILE, got {spec!r}"
        )
    try:
        rows = read(Path(path), count)
        return [READERS[name](index, row) for index, row in enumerate(rows)]
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"--problems {spec}: not a {name} file: {error!r}") from error


def read(path: Path, count: int) -> list[dict[str, Any]]:
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(count), lines, strict=False)]


def gsm8k(index: int, row: dict[str, Any]) -> Problem:
    right = row["answer"].rpartition("####")[2]
    return Problem("gsm8k", index, GSM8K.format(row["question"]), partial(has_number, right))


def humaneval(index: int, row: dict[str, Any]) -> Problem:
    check = partial(completes, row["prompt"], row["entry_point"], row["test"])
    return Problem("humaneval", index, HUMANEVAL.format(row["prompt"]), check)


READERS = {"gsm8k": gsm8k, "humaneval": humaneval}


def has_number(right: str, answer: str) -> bool:
    """Whether the last number of ``answer`` is that of ``right``."""
    found = [NUMBER.findall(text) for text in (right, answer)]
    if not all(found):
        return False
    expected, got = (Decimal(numbers[-1].replace(",", "")) for numbers in found)
    return expected == got


def completes(prompt: str, entry_point: str, tests: str, answer: str) -> bool:
    """Whether a HumanEval answer passes; it may hold the whole function or just its body."""
    blocks = CODE_BLOCK.findall(answer)
    code = blocks[-1] if blocks else answer
    # A whole function stands behind the prompt's imports and helpers and replaces its stub.
    head = f"{prompt}    pass\n\n" if f"def {entry_point}(" in code else prompt
    return passes(f"{head}{code}\n\n{tests}\n\ncheck({entry_point})\n")


def bundled_tasks() -> ModuleType:
    """``models.tasks`` of the checkout that this file is in, whatever the current folder.

    Raises:
        EvaluationError: this file is not in a checkout.
    """
    package = Path(__file__).parents[2] / "models" / "__init__.py"
    if not package.exists():
        raise EvaluationError(
            "--problems bundled: its tasks are in a checkout's models/, not in the wheel. "
            "Run from a checkout, or give gsm8k=FILE or humaneval=FILE."
        )
    if "models" not in sys.modules:
        spec = spec_from_file_location("models", package)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["models"] = models = module_from_spec(spec)
        spec.loader.exec_module(models)
    return import_module("models.tasks")


def bundled(count: int) -> list[Problem]:
    """``count`` test problems of each task of the bundled model."""
    tasks = bundled_tasks()
    return [
        Problem(task, index, problem.prompt, partial(tasks.is_correct, problem))
        for task in tasks.TASKS
        for index, problem in enumerate(tasks.problems(task, "test", count, BUNDLED_SEED))
    ]
