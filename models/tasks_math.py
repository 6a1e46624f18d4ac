"""Arithmetic word problems of two to four steps, each step worked, ending in `#### answer`.

Every number that appears is a whole number below 100. The key of a problem is its template and
its numbers: names, objects and wording do not count, so that a held-out problem is held out
under every disguise.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from models.problem import Draft, Problem

NAMES = (
    ("Ana", "She"), ("Ben", "He"), ("Cara", "She"), ("Dan", "He"), ("Ella", "She"),
    ("Finn", "He"), ("Gina", "She"), ("Hugo", "He"), ("Iris", "She"), ("Jack", "He"),
    ("Kim", "She"), ("Leo", "He"), ("Mia", "She"), ("Noah", "He"), ("Olga", "She"),
    ("Paul", "He"),
)  # fmt: skip
THINGS = (
    "apples", "marbles", "stickers", "cards", "shells", "coins", "pencils", "books", "stamps",
    "cookies", "beads", "flowers", "buttons", "balls", "toys", "stones",
)  # fmt: skip
GAINS = ("buys", "finds", "wins", "collects")
LOSSES = ("loses", "sells", "gives away", "drops")
LARGEST = 99

Worked = tuple[tuple[int | str, ...], str, list[str], int]  # numbers, question, lines, answer


def _story(rng: random.Random) -> Worked:
    name, pronoun = rng.choice(NAMES)
    thing = rng.choice(THINGS)
    now = rng.randint(5, 60)
    numbers: list[int | str] = [now]
    question = [f"{name} has {now} {thing}."]
    lines = [f"{name} starts with {now}."]
    for _ in range(rng.randint(2, 4)):
        kinds = ["gain"] * (now <= LARGEST - 2) + ["loss"] * (now >= 4) + ["bags"] * (now <= 60)
        kind = rng.choice(kinds)
        if kind == "gain":
            count, verb = rng.randint(2, min(40, LARGEST - now)), rng.choice(GAINS)
            question.append(f"{pronoun} {verb} {count} more.")
            lines.append(f"{pronoun} {verb} {count} more: {now} + {count} = {now + count}.")
            numbers.append(count)
            now += count
        elif kind == "loss":
            count, verb = rng.randint(2, min(40, now - 1)), rng.choice(LOSSES)
            question.append(f"{pronoun} {verb} {count} of them.")
            lines.append(f"{pronoun} {verb} {count}: {now} - {count} = {now - count}.")
            numbers.append(-count)
            now -= count
        else:
            bags, each = rng.randint(2, 6), rng.randint(2, 6)
            question.append(f"{pronoun} gets {bags} bags of {each}.")
            lines.append(
                f"{bags} bags of {each} are {bags} * {each} = {bags * each}: "
                f"{now} + {bags * each} = {now + bags * each}."
            )
            numbers.append(f"{bags}x{each}")
            now += bags * each
    question.append(f"How many {thing} does {name} have now?")
    lines.append(f"{name} has {now} now.")
    return tuple(numbers), " ".join(question), lines, now


def _shop(rng: random.Random) -> Worked:
    name, pronoun = rng.choice(NAMES)
    first, second = rng.sample(THINGS, 2)
    first_count, second_count = rng.randint(2, 9), rng.randint(2, 9)
    first_price, second_price = rng.randint(2, 5), rng.randint(2, 5)
    first_cost, second_cost = first_count * first_price, second_count * second_price
    cost = first_cost + second_cost
    paid = rng.randint(cost + 1, LARGEST)
    question = (
        f"{name} buys {first_count} {first} for {first_price} dollars each and "
        f"{second_count} {second} for {second_price} dollars each. "
        f"{pronoun} pays with {paid} dollars. How much change does {name} get?"
    )
    lines = [
        f"The first cost {first_count} * {first_price} = {first_cost} dollars.",
        f"The second cost {second_count} * {second_price} = {second_cost} dollars.",
        f"Together they cost {first_cost} + {second_cost} = {cost} dollars.",
        f"The change is {paid} - {cost} = {paid - cost} dollars.",
    ]
    numbers = (first_count, first_price, second_count, second_price, paid)
    return numbers, question, lines, paid - cost


def _week(rng: random.Random) -> Worked:
    name, pronoun = rng.choice(NAMES)
    thing = rng.choice(THINGS)
    monday, more, factor = rng.randint(3, 15), rng.randint(2, 20), rng.randint(2, 3)
    tuesday, wednesday = monday + more, monday * factor
    question = (
        f"{name} makes {monday} {thing} on Monday, {more} more than that on Tuesday and "
        f"{factor} times as many as on Monday on Wednesday. "
        f"How many {thing} does {name} make in all?"
    )
    lines = [
        f"On Tuesday {name} makes {monday} + {more} = {tuesday}.",
        f"On Wednesday {name} makes {monday} * {factor} = {wednesday}.",
        f"Monday and Tuesday give {monday} + {tuesday} = {monday + tuesday}.",
        f"With Wednesday {pronoun.lower()} makes "
        f"{monday + tuesday} + {wednesday} = {monday + tuesday + wednesday}.",
    ]
    return (monday, more, factor), question, lines, monday + tuesday + wednesday


def _share(rng: random.Random) -> Worked:
    name, pronoun = rng.choice(NAMES)
    thing = rng.choice(THINGS)
    boxes, each = rng.randint(3, 9), rng.randint(3, 9)
    total = boxes * each
    friends = rng.randint(2, 6)
    portion = rng.randint(1, min(12, (total - 1) // friends))
    kept = total - friends * portion
    question = (
        f"{name} opens {boxes} boxes of {each} {thing}. {pronoun} keeps {kept} of them and "
        f"shares the rest equally among {friends} friends. "
        f"How many {thing} does each friend get?"
    )
    lines = [
        f"The boxes hold {boxes} * {each} = {total}.",
        f"{name} keeps {kept}, so {total} - {kept} = {friends * portion} are shared.",
        f"Each of the {friends} friends gets {friends * portion} / {friends} = {portion}.",
    ]
    return (boxes, each, kept, friends), question, lines, portion


def _savings(rng: random.Random) -> Worked:
    name, pronoun = rng.choice(NAMES)
    start, weekly, weeks = rng.randint(3, 40), rng.randint(2, 9), rng.randint(2, 6)
    saved = weekly * weeks
    thing = rng.choice(THINGS)
    price = rng.randint(2, min(60, start + saved - 1))
    question = (
        f"{name} has {start} dollars and saves {weekly} dollars a week for {weeks} weeks. "
        f"{pronoun} then spends {price} dollars on {thing}. How many dollars are left?"
    )
    lines = [
        f"In {weeks} weeks {name} saves {weekly} * {weeks} = {saved} dollars.",
        f"{pronoun} then has {start} + {saved} = {start + saved} dollars.",
        f"After that there are {start + saved} - {price} = {start + saved - price} dollars.",
    ]
    return (start, weekly, weeks, price), question, lines, start + saved - price


TEMPLATES: dict[str, Callable[[random.Random], Worked]] = {
    "story": _story,
    "shop": _shop,
    "week": _week,
    "share": _share,
    "savings": _savings,
}
WEIGHTS = (6, 3, 1, 2, 2)


def draw(rng: random.Random) -> Draft:
    """Draw one problem from `rng`."""
    template = rng.choices(tuple(TEMPLATES), WEIGHTS)[0]
    numbers, question, lines, answer = TEMPLATES[template](rng)
    key = f"math/{template}/" + ",".join(map(str, numbers))
    solution = "\n".join([*lines, f"#### {answer}"])
    return Draft(key, lambda: Problem("math", question, solution, str(answer)))


def is_correct(problem: Problem, completion: str) -> bool:
    """Whether the number after the last `####` is the answer."""
    _, mark, tail = completion.rpartition("####")
    return bool(mark) and tail.strip() == problem.answer
