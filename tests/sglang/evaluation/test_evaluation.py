"""``lynx-sglang eval`` without a server: its arithmetic, its files, its refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lynx_sglang.errors import SettingError
from lynx_sglang.evaluation import problems
from lynx_sglang.evaluation.divergence import divergence, kl_of
from lynx_sglang.evaluation.execution import passes
from lynx_sglang.evaluation.journal import Journal
from lynx_sglang.evaluation.point import Point, points_of, update_of
from lynx_sglang.evaluation.report import first_difference, mean_interval, summary
from lynx_sglang.evaluation.server import EvaluationError
from lynx_sglang.evaluation.session import Leg
from lynx_sglang.evaluation.verification import fault


def logs(**shares: float) -> dict[int, float]:
    return {ord(name): math.log(share) for name, share in shares.items()}


def test_kl_merges_what_only_one_side_knows() -> None:
    full, served = logs(a=0.7, b=0.2), logs(a=0.5, c=0.3)
    expected = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert kl_of(full, served) == pytest.approx(expected)
    assert kl_of(full, full) == 0.0


def test_the_first_token_is_the_prefills_and_does_not_count() -> None:
    def entries(*tops: dict[int, float]) -> list[list[list[float]]]:
        return [[[logprob, token, None] for token, logprob in top.items()] for top in tops]

    one, same, other = logs(a=0.9, b=0.1), logs(a=0.6, b=0.4), logs(a=0.4, b=0.6)
    served = {
        "output_token_logprobs": [[math.log(0.9), ord("a"), None], [math.log(0.6), ord("b"), None]],
        "output_top_logprobs": entries(one, other),
    }
    full = {
        "input_token_logprobs": [[None, 1, None], [0.0, ord("a"), None],
                                 [math.log(0.4), ord("b"), None]],
        "input_top_logprobs": [None, *entries(one, same)],
    }  # fmt: skip
    found = divergence(served, full)
    assert found.kl == [pytest.approx(0.6 * math.log(1.5) + 0.4 * math.log(2 / 3))]
    assert found.agreements == 0
    assert found.nll_full == pytest.approx(-math.log(0.4))
    assert found.nll_served == pytest.approx(-math.log(0.6))
    full["input_token_logprobs"][1][1] = 5
    with pytest.raises(ValueError, match="other tokens"):
        divergence(served, full)


def test_points_fix_every_knob_and_go_as_numbers() -> None:
    points = points_of(shares="30%", budgets="full,50%,12,full", demands="0.7")
    assert [point.name for point in points] == [
        "budget full", "budget 50%", "budget 12", "share 30%", "demand 0.7",
    ]  # fmt: skip
    updates = [update_of(point.knobs()) for point in points]
    assert [update["lynx_budget"] for update in updates] == [-1, "50%", 12, 0, 0]
    assert [update["lynx_demand"] for update in updates] == [-1, -1, -1, -1, 0.7]
    assert [update["lynx_share"] for update in updates] == [0, 0, 0, 0.3, 0]
    assert all(update["lynx_slo_itl_ms"] == 0 for update in updates)
    assert update_of({"slo_itl_ms": 20.0, "budget": "auto", "demand": "auto"}) == {
        "lynx_slo_itl_ms": 20.0,
        "lynx_budget": 0,
        "lynx_demand": -1,
    }


@pytest.mark.parametrize(("budgets", "demands"), [("auto", ""), ("120%", ""), ("", "1.5")])
def test_a_point_out_of_range_is_named(budgets: str, demands: str) -> None:
    with pytest.raises(SettingError, match=r"--(budgets|demands): expected .* got"):
        points_of(budgets=budgets, demands=demands)


def test_a_journal_goes_on_and_refuses_another_measurement(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path, {"model": "a", "count": 2}).add({"kind": "answer"})
    with path.open("a") as file:
        file.write('{"kind": "ans')  # a process killed while it wrote
    journal = Journal(path, {"model": "a", "count": 2})
    assert journal.rows == [{"kind": "answer"}]
    journal.add({"kind": "window"})
    assert len(Journal(path, {"model": "a", "count": 2}).rows) == 2
    with pytest.raises(EvaluationError, match="model was 'a', is 'b'"):
        Journal(path, {"model": "b", "count": 2})


def part(point: Point, *, steps: int, active: float, mass: float, **more: object) -> dict:
    """A server's ``lynx`` part after so many decode steps at a point."""
    demand = 1.0 if point.demand == "auto" else point.demand
    return {
        "settings": {**point.knobs(), "floor": 1},
        "num_experts": 64,
        "decode_steps": steps,
        "active_experts_sum": active * steps,
        "retained_mass_sum": mass * steps,
        "floor_hits": 0,
        "decisions": {"override": steps},
        "decision": {"demand": demand},
        **more,
    }


BEFORE = part(Point(budget="full"), steps=0, active=0.0, mass=1.0)


@pytest.mark.parametrize(
    ("point", "ran"),
    [
        (Point(budget="full"), {"active": 30.0, "mass": 1.0}),
        (Point(budget="25%"), {"active": 15.9, "mass": 0.9}),
        (Point(budget=16), {"active": 17.0, "mass": 0.9, "floor_hits": 3}),
        (Point(demand=0.7), {"active": 20.0, "mass": 0.8}),
        (Point(demand=1.0), {"active": 30.0, "mass": 1.0}),
        (Point(share=0.5), {"active": 16.0, "mass": 0.8, "decision": {"demand": 1, "share": 0.5}}),
    ],
)
def test_a_point_that_ran_has_no_fault(point: Point, ran: dict) -> None:
    assert fault(point, BEFORE, part(point, steps=10, **ran)) is None


@pytest.mark.parametrize(
    ("point", "ran", "said"),
    [
        (Point(demand=0.7), {"active": 30.0, "mass": 1.0}, "nothing was cut"),
        (Point(demand=0.7), {"active": 30.0, "mass": 0.9, "decision": {"demand": 1.0}}, "demand 1"),
        (Point(budget="full"), {"active": 30.0, "mass": 0.99}, "full budget lost"),
        (Point(budget="25%"), {"active": 17.0, "mass": 0.9}, "above a cap of 16"),
        (Point(budget=8), {"active": 8.0, "mass": 0.9, "decisions": {"override": 6, "hold": 4}},
         "'hold': 4"),
        (Point(budget=8), {"active": 8.0, "mass": 0.9,
                           "settings": {**Point(budget=8).knobs(), "slo_itl_ms": 20.0}},
         "slo_itl_ms 20.0, not None"),
        (Point(budget=8), {"active": 0.0, "mass": 1.0, "decode_steps": 0}, "no decode step"),
        (Point(share=0.5), {"active": 30.0, "mass": 1.0, "decision": {"demand": 1, "share": 1.0}},
         "ran share 1.0"),
        (Point(share=0.5), {"active": 30.0, "mass": 1.0, "settings": {}}, "no setting share"),
    ],
)  # fmt: skip
def test_a_point_that_the_server_did_not_run_is_a_fault(point: Point, ran: dict, said: str) -> None:
    assert said in str(fault(point, BEFORE, part(point, **{"steps": 10, **ran})))


def answer(problem: str, concurrency: int, tokens: list[int], *, correct: bool) -> dict:
    return {
        "kind": "answer", "point": "budget 8", "concurrency": concurrency, "problem": problem,
        "correct": correct, "finished": True, "tokens": tokens, "retained_mass": 0.9,
        "kl": [0.1, 0.3], "agreements": 1, "nll_full": 2.0, "nll_served": 1.0,
    }  # fmt: skip


def test_a_leg_sums_its_windows_and_compares_with_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows", {})
    for row in (
        answer("math/0", 1, [1, 2, 3], correct=True),
        answer("math/0", 4, [1, 2, 4], correct=False),
        answer("math/1", 4, [5], correct=True),
    ):
        journal.add(row)
    none = {"steps": 0, "rows": 0, "kl_sum": 0.0, "agreements": 0}
    for steps, active in ((10, 100.0), (30, 500.0)):
        journal.add({"kind": "window", "point": "budget 8", "concurrency": 4,
                     "decode_steps": steps, "active_experts_sum": active,
                     "retained_mass_sum": steps * 0.9, "shadow": none})  # fmt: skip
    found = summary(Leg(Point(budget=8), 4, ()), journal)
    assert found["active_experts"] == 15.0
    assert found["accuracy"]["math"]["share"] == 0.5
    assert found["kl"] == pytest.approx(0.2)
    assert found["agreement"] == 0.5
    assert found["nll_excess"] == 0.5
    assert (found["compared"], found["differing"], found["first_difference"]) == (1, 1.0, 2.0)
    assert found["shadow_kl"] is None


def test_where_answers_part() -> None:
    assert first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert first_difference([1, 2], [1, 2, 4]) == 2


def test_the_interval_holds_the_mean_and_needs_two_answers() -> None:
    low, high = mean_interval([[0.0, 1.0], [1.0, 1.0], [0.0]]) or [1, 0]
    assert low < 0.6 < high
    assert mean_interval([[0.5]]) is None


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("So 9*2=18.\n#### 18", True), ("$1,018.00", False), ("it is 18.0 eggs", True), ("", False)],
)
def test_gsm8k_reads_the_last_number(tmp_path: Path, text: str, is_right: bool) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "so <<9*2=18>>18\n#### 18"}))
    (problem,) = problems.load(f"gsm8k={file}", 5)
    assert problem.check(text) is is_right


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("    return sqrt(x)\n", True),
        ("Sure:\n```python\ndef root(x):\n    return sqrt(x)\n```\n", True),
        ("    return x\n", False),
        ("    raise SystemExit(0)\n", False),
    ],
)
def test_humaneval_takes_a_body_or_a_function(tmp_path: Path, text: str, is_right: bool) -> None:
    file = tmp_path / "tests.jsonl"
    row = {
        "prompt": 'from math import sqrt\n\n\ndef root(x):\n    """Root."""\n',
        "entry_point": "root",
        "test": "def check(candidate):\n    assert candidate(9) == 3\n",
    }
    file.write_text(json.dumps(row))
    (problem,) = problems.load(f"humaneval={file}", 1)
    assert problem.check(text) is is_right


def test_code_that_never_ends_fails() -> None:
    assert not passes("while True: pass", time_limit_s=0.3)


@pytest.mark.parametrize("spec", ["mmlu=x", "gsm8k", "gsm8k=/nowhere"])
def test_a_set_that_is_none_is_named(spec: str) -> None:
    with pytest.raises(EvaluationError, match="--problems"):
        problems.load(spec, 1)
