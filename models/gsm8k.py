"""GSM8K's text: grade-school problems with worked answers, as real language to model.

Not part of this repository: https://github.com/openai/grade-school-math (MIT) has the files as
`grade_school_math/data/train.jsonl` and `test.jsonl`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from models.problem import Problem

SPLITS = ("train", "validation", "test")
VALIDATION_EVERY = 50
CALCULATION = re.compile(r"<<.*?>>")  # a calculator's call, such as <<48/2=24>>


def texts(folder: Path, split: str) -> list[Problem]:
    """One split's problems, calculator calls left out; `validation` is cut from the train file.

    Raises:
        ValueError: unknown split, or `folder` lacks `gsm8k_train.jsonl` or `gsm8k_test.jsonl`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    path = folder / f"gsm8k_{'test' if split == 'test' else 'train'}.jsonl"
    if not path.is_file():
        raise ValueError(
            f"GSM8K's folder must hold {path.name}, got {str(folder)!r}. "
            "Get it from https://github.com/openai/grade-school-math (grade_school_math/data)."
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [_problem(row["question"], row["answer"]) for row in rows]
    if split == "test":
        return found
    return [
        problem
        for index, problem in enumerate(found)
        if (index % VALIDATION_EVERY == 0) == (split == "validation")
    ]


def _problem(question: str, answer: str) -> Problem:
    worked = CALCULATION.sub("", answer)
    return Problem("gsm8k", question, worked, worked.rpartition("####")[2].strip())
