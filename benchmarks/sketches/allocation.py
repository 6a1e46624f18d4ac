"""Ranks of the experts' sketches: the most explained energy for a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence

Option = tuple[int, float]  # numbers that it reads, energy that it explains


def hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the upper concave hull, from (0, 0), by rising size."""
    corners: list[tuple[int, int, float]] = [(-1, 0, 0.0)]
    for index in sorted(range(len(options)), key=lambda i: (options[i][0], -options[i][1], i)):
        size, gain = options[index]
        if gain <= corners[-1][2]:
            continue
        while len(corners) > 1 and (gain - corners[-1][2]) * (corners[-1][1] - corners[-2][1]) >= (
            corners[-1][2] - corners[-2][2]
        ) * (size - corners[-1][1]):
            corners.pop()
        corners.append((index, size, gain))
    return [index for index, _, _ in corners[1:]]


def allocate(options: Sequence[Sequence[Option]], budget: int) -> list[int | None]:
    """The option of each expert, None for no sketch; their sizes add up to at most `budget`.

    Greedy by energy per number along each expert's hull; ties go to the lower expert.

    Raises:
        ValueError: a negative budget.
    """
    if budget < 0:
        raise ValueError(f"budget: expected at least 0 numbers, got {budget}")
    steps = []
    for expert, each in enumerate(options):
        size, gain = 0, 0.0
        for place, index in enumerate(hull(each)):
            more = each[index][0] - size
            value = (each[index][1] - gain) / more
            steps.append((-value, expert, place, index, more))
            size, gain = each[index]
    chosen: list[int | None] = [None] * len(options)
    is_full = [False] * len(options)  # a step that does not fit ends an expert's hull
    for _, expert, _, index, more in sorted(steps):
        is_full[expert] |= more > budget
        if not is_full[expert]:
            chosen[expert] = index
            budget -= more
    return chosen
