"""Small Python functions written from a docstring and judged by running unit tests.

A function passes a list through two to four stages (filter, map, order, cut) and reduces it.
The key of a problem is its family, stages and constants in order; the function's name does not
count.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from models import sandbox
from models.problem import Draft, Problem

VERBS = ("build", "compute", "find", "get", "make", "scan")
NOUNS = ("answer", "data", "report", "result", "score", "value")
WORDS = (
    "apple", "river", "stone", "eel", "banana", "tree", "sun", "ant", "moon", "sea", "eagle",
    "table", "radar", "oat", "bee", "lemon", "iron", "nest", "onion", "idea",
)  # fmt: skip

Stage = tuple[str, str]  # what the docstring says, and the expression that does it
Choice = Callable[[random.Random], Stage]


def _with_constant(low: int, high: int, text: str, expression: str) -> Choice:
    def choose(rng: random.Random) -> Stage:
        constant = str(rng.randint(low, high))
        return text.replace("#", constant), expression.replace("#", constant)

    return choose


def _plain(text: str, expression: str) -> Choice:
    return lambda rng: (text, expression)


NUMBER_STAGES: tuple[Choice, ...] = (
    _with_constant(0, 20, "keep the numbers greater than #", "[x for x in xs if x > #]"),
    _with_constant(0, 20, "keep the numbers less than #", "[x for x in xs if x < #]"),
    _with_constant(2, 9, "keep the multiples of #", "[x for x in xs if x % # == 0]"),
    _with_constant(1, 20, "drop the numbers equal to #", "[x for x in xs if x != #]"),
    _plain("keep the even numbers", "[x for x in xs if x % 2 == 0]"),
    _plain("keep the odd numbers", "[x for x in xs if x % 2 == 1]"),
    _with_constant(1, 20, "add # to each", "[x + # for x in xs]"),
    _with_constant(1, 20, "subtract # from each", "[x - # for x in xs]"),
    _with_constant(2, 9, "multiply each by #", "[x * # for x in xs]"),
    _with_constant(2, 9, "take each modulo #", "[x % # for x in xs]"),
    _with_constant(1, 20, "cap each at #", "[min(x, #) for x in xs]"),
    _with_constant(1, 20, "raise each to at least #", "[max(x, #) for x in xs]"),
    _plain("square each", "[x * x for x in xs]"),
    _plain("take absolute values", "[abs(x) for x in xs]"),
    _plain("negate each", "[-x for x in xs]"),
    _plain("sort them", "sorted(xs)"),
    _plain("reverse the order", "xs[::-1]"),
    _plain("remove duplicates and sort", "sorted(set(xs))"),
    _with_constant(2, 6, "take the first #", "xs[:#]"),
    _with_constant(1, 4, "skip the first #", "xs[#:]"),
)
NUMBER_ENDS: tuple[Choice, ...] = (
    _plain("the list", "xs"),
    _plain("the sum", "sum(xs)"),
    _plain("the count", "len(xs)"),
    _plain("the largest, or 0 if empty", "max(xs, default=0)"),
    _plain("the smallest, or 0 if empty", "min(xs, default=0)"),
    _with_constant(2, 9, "the sum modulo #", "sum(xs) % #"),
    _with_constant(2, 20, "the sum plus #", "sum(xs) + #"),
    _with_constant(2, 20, "how many equal #", "xs.count(#)"),
)
WORD_STAGES: tuple[Choice, ...] = (
    _with_constant(2, 5, "keep the words longer than #", "[w for w in ws if len(w) > #]"),
    _with_constant(4, 6, "keep the words shorter than #", "[w for w in ws if len(w) < #]"),
    _with_constant(2, 6, "keep the words of length #", "[w for w in ws if len(w) == #]"),
    _with_constant(2, 6, "drop the words of length #", "[w for w in ws if len(w) != #]"),
    _plain("keep the words of even length", "[w for w in ws if len(w) % 2 == 0]"),
    _plain("keep the words of odd length", "[w for w in ws if len(w) % 2 == 1]"),
    _plain("reverse each", "[w[::-1] for w in ws]"),
    _plain("write each in capitals", "[w.upper() for w in ws]"),
    _plain("capitalize each", "[w.capitalize() for w in ws]"),
    _with_constant(2, 4, "repeat each # times", "[w * # for w in ws]"),
    _with_constant(2, 5, "cut each to # letters", "[w[:#] for w in ws]"),
    _with_constant(1, 3, "remove the first # letters of each", "[w[#:] for w in ws]"),
    _with_constant(2, 4, "keep the last # letters of each", "[w[-#:] for w in ws]"),
    _plain("sort them", "sorted(ws)"),
    _plain("sort by length", "sorted(ws, key=len)"),
    _plain("remove duplicates and sort", "sorted(set(ws))"),
    _plain("reverse the order", "ws[::-1]"),
    _with_constant(2, 6, "take the first #", "ws[:#]"),
    _with_constant(1, 4, "skip the first #", "ws[#:]"),
)
WORD_ENDS: tuple[Choice, ...] = (
    _plain("the list", "ws"),
    _plain("the count", "len(ws)"),
    _plain("the total length", "sum(len(w) for w in ws)"),
    _plain("the longest word, or '' if empty", "max(ws, key=len, default='')"),
    _plain("the words joined by spaces", "' '.join(ws)"),
    _plain("the words joined by dashes", "'-'.join(ws)"),
    _plain("the text in capitals", "''.join(ws).upper()"),
    _with_constant(2, 20, "the count plus #", "len(ws) + #"),
)
FAMILIES = {"xs": (NUMBER_STAGES, NUMBER_ENDS), "ws": (WORD_STAGES, WORD_ENDS)}


def _inputs(family: str, rng: random.Random) -> tuple[list[list[int]] | list[list[str]], str]:
    """Some whole lists, and source for many one-item lists (which pin every constant down)."""
    if family == "xs":
        lists = [[rng.randint(-12, 30) for _ in range(count)] for count in (12, 12, 8)]
        return [[], *lists], "range(-6, 26)"
    words = [rng.sample(WORDS, count) for count in (12, 12, 8)]
    return [[], *words], repr(list(WORDS))


def _unit_tests(name: str, family: str, solution: str, rng: random.Random) -> str:
    lists, singles = _inputs(family, rng)
    namespace: dict[str, object] = {}
    exec(solution, namespace)  # our own source, a few lines above
    expressions = [f"{name}({items!r})" for items in lists]
    expressions.append(f"[{name}([item]) for item in {singles}]")
    return "\n".join(f"assert {e} == {eval(e, namespace)!r}" for e in expressions)


def draw(rng: random.Random) -> Draft:
    """Draw one problem from `rng`."""
    family = rng.choice(tuple(FAMILIES))
    stages, ends = FAMILIES[family]
    steps = [choice(rng) for choice in rng.sample(stages, rng.randint(2, 4))]
    end_text, end = rng.choice(ends)(rng)
    name = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    text = ", ".join(text for text, _ in steps)
    header = f"def {name}({family}):"
    docstring = f"{text[0].upper()}{text[1:]}, and return {end_text}."
    body = [f"    {family} = {expression}" for _, expression in steps]
    solution = "\n".join([header, *body, f"    return {end}"])
    key = "/".join(["code", family, *(expression for _, expression in steps), end])
    prompt = f'{header}\n    """{docstring}"""'

    def finish() -> Problem:
        tests = _unit_tests(name, family, solution, random.Random(key))
        return Problem("code", prompt, solution, tests)

    return Draft(key, finish)


def is_correct(problem: Problem, completion: str) -> bool:
    """Whether the completion's function passes the unit tests."""
    return sandbox.passes(completion, problem.answer)
