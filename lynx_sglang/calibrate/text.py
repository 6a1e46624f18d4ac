"""The text of a calibration: token sequences that each begin with a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lynx_sglang.evaluation.server import EvaluationError

PLAIN_TOKENS = 256  # of a sequence of plain text; the first half stands for a prompt
LEAST_TOKENS = 512  # of the whole sample


@dataclass(frozen=True, slots=True)
class Sequence:
    """The first ``prompt`` tokens run with every expert, as in a server; the others share."""

    tokens: list[int]
    prompt: int


def read(path: Path, encode: Callable[..., list[int]], most: int) -> list[Sequence]:
    """Whole sequences of at most ``most`` tokens in all.

    ``.jsonl``: one ``{"prompt": ..., "answer": ...}`` a line. Else plain text, cut in pieces.

    Raises:
        EvaluationError: a line is no such object, or there is too little text.
    """
    if path.suffix == ".jsonl":
        found = pairs(path, encode)
    else:
        tokens = encode(path.read_text())
        starts = range(0, len(tokens) - PLAIN_TOKENS + 1, PLAIN_TOKENS)
        pieces = (tokens[start : start + PLAIN_TOKENS] for start in starts)
        found = (Sequence(piece, PLAIN_TOKENS // 2) for piece in pieces)
    sequences: list[Sequence] = []
    count = 0
    for each in found:
        count += len(each.tokens)
        if count > most:
            break
        sequences.append(each)
    total = sum(len(each.tokens) for each in sequences)
    if total < LEAST_TOKENS:
        raise EvaluationError(
            f"--text {path}: expected sequences of {LEAST_TOKENS} tokens or more in all, "
            f"within --tokens {most}; got {total}"
        )
    return sequences


def pairs(path: Path, encode: Callable[..., list[int]]) -> Iterator[Sequence]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            prompt, answer = row["prompt"], row["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f'--text {path}, line {number}: expected {{"prompt": text, "answer": text}}, '
                f"got {line[:80]!r}"
            ) from error
        if not (isinstance(prompt, str) and isinstance(answer, str)):
            raise EvaluationError(
                f"--text {path}, line {number}: prompt and answer: expected text, got {line[:80]!r}"
            )
        first = encode(prompt)
        tokens = first + encode(answer, add_special_tokens=False)
        if first and len(tokens) > len(first) + 1:  # something is decoded, and predicted from it
            yield Sequence(tokens, len(first))
