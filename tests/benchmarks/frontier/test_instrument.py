"""The frontier's instrument on an untrained model: what it runs is the model, and what it cuts."""

from __future__ import annotations

import pytest
import torch

from benchmarks.frontier.bootstrap import draws_of, interval, log_kl_at, paired_loss
from benchmarks.frontier.forced import Forced
from benchmarks.frontier.free import decode
from benchmarks.frontier.gate import Gate, Setting
from benchmarks.frontier.importance import Ruled
from benchmarks.frontier.measure import figures, measure
from benchmarks.frontier.results import Results, key_of
from benchmarks.frontier.rules import greedy, power, put_out
from benchmarks.frontier.sensitivity import contributions, layer_budgets, similarities
from benchmarks.frontier.transcripts import Transcript, encode, mixed
from lynx_kernels import POLICIES
from models.decoding import complete
from models.model import Batch, Model
from models.shape import Shape
from models.tasks import TASKS, problems
from models.vocabulary import train_tokenizer

SMALL = Shape(vocabulary=320, layers=3, hidden=32, heads=2, kv_heads=1, experts=12, inner=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(SMALL).eval()


@pytest.fixture(scope="module")
def tokenizer():
    texts = [p.prompt + p.solution for task in TASKS for p in problems(task, "train", 40, 0)]
    return train_tokenizer(texts, SMALL.vocabulary)


@pytest.fixture(scope="module")
def transcripts(tokenizer):
    """Answers of unlike lengths; an untrained model has none of its own."""
    asked = mixed("validation", 12, 0)
    answers = [tokenizer.encode(p.solution).ids[: 12 + i % 7] for i, p in enumerate(asked)]
    return [
        Transcript(*each) for each in zip(asked, encode(tokenizer, asked), answers, strict=True)
    ]


@pytest.fixture(scope="module")
def forced(model, transcripts):
    return Forced(model, transcripts)


def test_forced_decoding_is_the_model_token_by_token(model, transcripts, forced):
    start = 0
    for each in transcripts[:4]:
        ids = each.prompt + each.answer[:-1]
        batch = Batch(torch.ones(1, len(ids), dtype=torch.bool), torch.arange(len(ids)))
        with torch.inference_mode():
            expected, _ = model(torch.tensor(ids), batch)
        count = len(each.answer) - 1
        got = forced.full[start : start + count]
        torch.testing.assert_close(
            got, expected[len(each.prompt) :].log_softmax(-1), rtol=1e-4, atol=1e-5
        )
        start += count


def test_a_step_holds_tokens_of_different_answers(forced):
    steps = forced.steps(4)
    assert len(steps.unique()) == steps.numel()
    for step in steps:
        assert len(forced.problem[step].unique()) == 4
    with pytest.raises(ValueError, match="rows: expected at most"):
        forced.steps(64)


def test_full_quality_costs_nothing_and_a_cut_holds_its_budget(forced):
    full = measure(forced, 4, Setting(POLICIES["full"]))
    assert full["kl"] < 1e-9
    assert full["agreement"] == 1
    cut = measure(forced, 4, Setting(POLICIES["lynx"], budget=5, floor=1))
    assert cut["T"] < full["T"]
    assert cut["kl"] > full["kl"]
    assert sum(cut["tokens_by_problem"]) == cut["tokens"]
    assert sum(cut["kl_by_problem"]) == pytest.approx(cut["kl"] * cut["tokens"], rel=1e-2)


def test_selection_in_forced_decoding_equals_decoding_step_by_step(model, tokenizer, transcripts):
    """One batch of rows that start together: free-running under a cut, then forced along it."""
    prompts = [each.prompt for each in transcripts[:4]]
    setting = Setting(POLICIES["lynx"], budget=6)
    answers = decode(
        model, tokenizer, prompts, gate=Gate(setting), rows=4, max_new_tokens=12
    ).answers
    shortest = min(map(len, answers))
    again = [
        Transcript(each.problem, each.prompt, answer[:shortest])
        for each, answer in zip(transcripts, answers, strict=False)
    ]
    forced = Forced(model, again)
    steps = torch.arange(4 * (shortest - 1)).view(4, shortest - 1).t()
    got = forced.run(Gate(setting, None, steps)).argmax(1)
    assert torch.equal(got, forced.targets)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_free_running_answers_are_those_of_plain_decoding(model, tokenizer, transcripts, rows):
    asked = [each.problem.prompt for each in transcripts[:8]]
    expected = complete(model, tokenizer, asked, max_new_tokens=20)
    prompts = [each.prompt for each in transcripts[:8]]
    got = decode(
        model, tokenizer, prompts, rows=rows, max_slots=4 if rows < 4 else 8, max_new_tokens=20
    ).answers
    end = tokenizer.token_to_id("<|im_end|>")
    assert [tokenizer.decode([t for t in ids if t != end]) for ids in got] == expected


def test_similarity_is_one_with_itself(forced):
    for likeness in similarities(forced):
        torch.testing.assert_close(likeness.diagonal(), torch.ones(12), rtol=1e-5, atol=0)
        torch.testing.assert_close(likeness, likeness.t(), rtol=1e-5, atol=1e-6)


def test_layer_budgets_keep_the_mean():
    assert layer_budgets([0.1, -0.1], 0.5, 20.0) == (12, 8)
    assert layer_budgets([0.0, -0.9], 0.5, 20.0) == (10, 1)


def test_curves_are_read_between_settings_and_not_beyond():
    rows = [
        {"T": active, "kl_by_problem": [kl, kl], "tokens_by_problem": [1, 1]}
        for active, kl in ((10.0, 1e-2), (20.0, 1e-4))
    ]
    draws = draws_of(2)
    middle = log_kl_at(rows, 15.0, draws)
    assert middle is not None
    assert interval(middle)[0] == pytest.approx(-6.9078, abs=1e-3)  # ln 1e-3
    assert log_kl_at(rows, 21.0, draws) is None


def test_a_loss_is_paired():
    points, low, high = paired_loss({1, 2}, {2, 3, 4}, 1000)
    assert points == pytest.approx(0.1)
    assert low < 0 < high
    assert paired_loss(set(), set(), 1000)[2] > 0


def test_results_resume_and_refuse_foreign_rows(tmp_path):
    about = {"model": "m", "problems": 4, "seeds": {"test": 1}}
    setting = Setting(POLICIES["lynx"], budget=(3, 4))
    key = key_of("curves", "test", 8, setting)
    Results(tmp_path / "m.jsonl", about).add(key, {"kl": 1.0})
    assert Results(tmp_path / "m.jsonl", about).rows == {key: {"kl": 1.0}}
    with pytest.raises(ValueError, match="expected rows made with problems 5, got 4"):
        Results(tmp_path / "m.jsonl", about | {"problems": 5})


def test_contributions_are_what_experts_add_and_reach_selection(forced):
    found = contributions(forced)
    for layer in found:
        assert layer.shape == (12,)
        assert layer.max() == 1
        assert layer.min() > 0
    # One expert that gives nothing: it contributes nothing, and the budget goes to the others.
    silent = forced.model.moe_layers()[1]
    before = silent.down[3].clone()
    with torch.no_grad():
        silent.down[3] = 0
        assert contributions(forced)[1][3] == 0
        silent.down[3] = before
    setting = Setting(POLICIES["lynx"], budget=5, floor=0, is_weighing=True)
    even = measure(forced, 4, setting, contribution=[torch.ones(12)] * 3)
    assert even["kl"] == measure(forced, 4, Setting(POLICIES["lynx"], budget=5, floor=0))["kl"]
    only = [(torch.arange(12) < 6).float()] * 3  # the others are chosen last
    assert measure(forced, 4, setting, contribution=only)["kl"] != even["kl"]


def test_rules_share_the_frame_of_the_policy(forced):
    """With the policy's own importance a rule is the policy; others keep its budget and floors."""
    for budget, floor in (((4, 6, 5), 0), (5, 1)):
        lynx = measure(forced, 4, Setting(POLICIES["lynx"], budget, floor=floor))
        same = figures(forced, Ruled(forced, budget, power(6), 4, floor))
        assert same["T"] == lynx["T"]
        assert same["kl_by_problem"] == pytest.approx(lynx["kl_by_problem"], rel=1e-2)
    for rule in (greedy, put_out):
        other = figures(forced, Ruled(forced, 5, rule, rows=4))
        assert other["T"] == pytest.approx(lynx["T"], abs=0.1)
        assert other["kl_by_problem"] != same["kl_by_problem"]
