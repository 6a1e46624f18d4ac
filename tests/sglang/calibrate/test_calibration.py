"""The calibration file: what it decides, and the servers that it is refused by."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.moe.token_dispatcher import StandardDispatchOutput
from sglang.srt.layers.moe.topk import StandardTopKOutput

from lynx_sglang import calibration
from lynx_sglang.calibrate import text
from lynx_sglang.calibrate.capped_prefill import PROMPT, STATE, CappedPrefill
from lynx_sglang.calibrate.expert_outputs import ExpertOutputs, contributions_of
from lynx_sglang.calibrate.measure import LAYER_SHARE, SHARES, layer_offsets, least_share, measure
from lynx_sglang.calibration import FORMAT, Calibration
from lynx_sglang.errors import SettingError
from lynx_sglang.evaluation.journal import Journal
from lynx_sglang.evaluation.server import EvaluationError
from lynx_sglang.settings import resolve


class Config:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return self.values


MODEL = Config(num_experts=64, transformers_version="5.0", _name_or_path="/a")
MADE = Calibration(
    format=FORMAT, lynx=calibration.version(), model="m",
    model_sha256=calibration.fingerprint(MODEL), policy="lynx", rows=16, tokens=512,
    quality_loss=0.01, min_retained_mass=0.6, shares=[], layer_share=0.4,
    layer_kl=[0.1], layer_offsets=[0.0], contributions=[[1.0, 0.5]],
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.json"
    MADE.save(path)
    return path


def test_its_mass_is_the_floor_unless_one_is_set(file: Path) -> None:
    assert resolve({"calibration": str(file)}, {}).min_retained_mass == 0.6
    assert (
        resolve({"calibration": str(file), "min_retained_mass": 0.3}, {}).min_retained_mass == 0.3
    )
    assert (
        resolve({"calibration": str(file)}, {"LYNX_MIN_RETAINED_MASS": "0.4"}).min_retained_mass
        == 0.4
    )
    assert resolve({}, {"LYNX_CALIBRATION": str(file)}).min_retained_mass == 0.6


def test_the_same_model_elsewhere_is_the_same() -> None:
    assert (
        MADE.refusal(Config(num_experts=64, transformers_version="6", _name_or_path="/b")) is None
    )


def test_another_model_is_refused() -> None:
    reason = MADE.refusal(Config(num_experts=128))
    assert reason is not None
    assert "another model" in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": FORMAT + 1}, "stale"),
        ({"lynx": "0.0.1"}, "stale: written by version 0.0.1"),
        ({"policy": "oea"}, "measured with --lynx-policy oea"),
        ({"min_retained_mass": 0.0}, "min_retained_mass"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "other.json"
    replace(MADE, **change).save(path)
    with pytest.raises(SettingError, match=reason):
        resolve({"calibration": str(path)}, {})


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "cannot be read"), ("[]", "not a file of"), ('{"a": 1}', "not a")]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SettingError, match=reason):
        resolve({"calibration": str(path)}, {})


def test_a_damaged_file_is_refused(file: Path) -> None:
    values = json.loads(file.read_text())
    del values["layer_kl"]
    file.write_text(json.dumps(values))
    with pytest.raises(SettingError, match="layer_kl"):
        resolve({"calibration": str(file)}, {})


def test_contributions_are_of_the_model_that_runs() -> None:
    assert MADE.contributions_of([7], 2)[7].tolist() == [1.0, 0.5]
    assert replace(MADE, contributions=None).contributions_of([7], 2) == {}
    for layers, num_experts in (([7], 3), ([7, 8], 2)):
        with pytest.raises(SettingError, match="contributions: expected"):
            MADE.contributions_of(layers, num_experts)


def row(share: float, high: float) -> dict[str, Any]:
    return {"share": share, "kl_interval_95": [0.0, high]}


def test_layers_that_a_cut_hurts_more_get_a_larger_share() -> None:
    curve = [{"share": share, "kl": math.exp(-10 * share)} for share in (0.6, 0.4)]
    assert layer_offsets(curve, [0.01 * math.e, 0.01, 0.01 / math.e]) == [0.1, 0.0, -0.1]
    spread = layer_offsets(curve, [1.0, 1e-9, 1e-3])
    assert sum(spread) == pytest.approx(0.0, abs=1e-3)
    assert max(map(abs, spread)) < 0.3
    flat = [{"share": 0.6, "kl": 0.1}, {"share": 0.4, "kl": 0.1}]
    assert layer_offsets(flat, [0.1, 0.2]) == [0.0, 0.0]


def test_the_least_share_stops_at_the_first_that_may_lose_too_much() -> None:
    rows = [row(0.5, 0.009), row(0.9, 0.001), row(0.7, 0.02)]
    assert least_share(rows, 0.01) == rows[1]
    assert least_share(rows, 0.05) == rows[0]
    assert least_share(rows, 0.0001) is None


class Router:
    use_grouped_topk = False
    correction_bias = None
    custom_routing_function = None
    scoring_func = "softmax"


def call(layer: int, rows: int = 33) -> dict[str, Any]:
    logits = torch.randn(rows, 32, generator=torch.Generator().manual_seed(layer))
    weights, ids = logits.softmax(-1).topk(4)
    return {"layer_id": layer, "router_logits": logits, "topk_config": Router(),
            "topk_ids": ids.to(torch.int32), "topk_weights": weights}  # fmt: skip


def batch(*requests: tuple[int, int, int | None]) -> Any:
    """A prefill of requests: tokens already there, tokens of this pass, tokens of the prompt."""
    params = [{} if prompt is None else {PROMPT: prompt} for _, _, prompt in requests]
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: True),
        reqs=[SimpleNamespace(sampling_params=SimpleNamespace(custom_params=p)) for p in params],
        prefix_lens=[start for start, _, _ in requests],
        extend_lens=[length for _, length, _ in requests],
    )


def test_prompts_keep_their_experts_in_chunks_too() -> None:
    cut = CappedPrefill()
    cut.before_batch(None, batch((0, 4, 2), (0, 3, None), (4, 3, 5), (8, 2, 5), (0, 2, 5)))
    #                             0 1 2 3    4 5 6         7 8 9      10 11      12 13
    assert cut.flexible.tolist() == [2, 3, 8, 9, 10, 11]
    cut.set(share=0.3, layer=-1, rows=4, policy="lynx")
    given = call(0, 14)
    out = cut.around_topk(lambda **named: named, **given)["topk_ids"]
    changed = (out != given["topk_ids"]).any(dim=1).nonzero().flatten().tolist()
    assert changed
    assert set(changed) <= {2, 3, 8, 9, 10, 11}


def words(text: str, add_special_tokens: bool = True) -> list[int]:
    return [0] * add_special_tokens + [len(each) for each in text.split()]


def test_a_sample_of_prompts_and_answers(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    rows = [{"prompt": "a bb", "answer": "c " * 400}, {"prompt": "a", "answer": "dd"}] * 2
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = text.read(file, words, 10_000)
    assert [(each.prompt, len(each.tokens)) for each in found] == [(3, 403)] * 2
    assert len(text.read(file, words, 810)) == 2
    with pytest.raises(EvaluationError, match="within --tokens 500; got 403"):
        text.read(file, words, 500)
    file.write_text(json.dumps(rows[0]) + '\n{"prompt": "a"}\n')
    with pytest.raises(EvaluationError, match="line 2: expected"):
        text.read(file, words, 10_000)


def test_of_plain_text_half_of_each_piece_stands_for_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("a " * 1_100)
    found = text.read(file, words, 1_000)
    assert [(each.prompt, len(each.tokens)) for each in found] == [(128, 256)] * 3


def test_a_cut_shares_within_groups_and_in_its_layer_alone() -> None:
    cut = CappedPrefill()
    cut.set(share=0.5, layer=1, rows=8, policy="lynx")
    cut.before_batch(None, batch((0, 33, 0)))
    given = call(0)
    assert cut.around_topk(lambda **named: named, **given)["topk_ids"] is given["topk_ids"]
    given = call(1)
    kept = given["topk_ids"].clone()
    out = cut.around_topk(lambda **named: named, **given)["topk_ids"]
    assert torch.equal(given["topk_ids"], kept)  # the input is not written
    assert not torch.equal(out, kept)
    for first in range(5):  # 33 rows in five groups of at most 8, five positions apart
        group = torch.arange(first, 33, 5)
        used = {expert for expert in out[group].flatten().tolist() if expert >= 0}
        wanted = set(kept[group].flatten().tolist())
        assert used < wanted
        assert len(used) <= max(round(0.5 * len(wanted)), len(group))  # the floors' union at most
    assert cut.count == 33
    assert 0.4 <= cut.mass / cut.count < 1.0


def test_without_a_cut_nothing_changes() -> None:
    given = call(2)
    routed = CappedPrefill().around_topk(lambda **named: named, **given)
    assert routed["topk_ids"] is given["topk_ids"]


def test_contributions_are_root_mean_squares_over_squared_weights() -> None:
    outputs = ExpertOutputs()
    ids = torch.tensor([0, 0, 1, 3, -1, 4])  # 4: a fused shared expert; 2: used by none
    weights = torch.tensor([0.6, 0.3, 0.5, 0.2, 9.0, 9.0])
    norms = torch.tensor([1.0, 2.0, 4.0, 1.0, 9.0, 9.0])
    outputs.note(5, 4, ids, weights, norms.unsqueeze(1))
    outputs.note(5, 4, ids[:1], weights[:1], norms[:1].unsqueeze(1))  # the next batch adds up
    first = math.sqrt((0.36 + 0.36 + 0.09 * 4) / (0.36 + 0.36 + 0.09))
    expected = torch.tensor([first, 4.0, first, 1.0]) / 4.0
    assert torch.allclose(outputs.contributions(5), expected, atol=1e-4)
    none = torch.zeros(3, dtype=torch.float64)
    assert contributions_of(none, none).tolist() == [1.0, 1.0, 1.0]


class Experts:
    """A layer whose expert e turns its input into e + 1 times it, over the input's memory."""

    layer_id = 0
    moe_runner_config = SimpleNamespace(num_experts=32, num_fused_shared_experts=0)

    def run_moe_core(self, dispatch_output: Any) -> Any:
        hidden, routing = dispatch_output.hidden_states, dispatch_output.topk_output
        factor = (routing.topk_weights * (routing.topk_ids + 1)).sum(dim=1, keepdim=True)
        return SimpleNamespace(hidden_states=hidden.mul_(factor))


def test_a_full_pass_measures_what_later_cuts_weigh_by() -> None:
    cut, layer, given = CappedPrefill(), Experts(), call(0)
    cut.set(share=1.0, layer=-1, rows=8, policy="lynx")
    cut.before_batch(None, batch((0, 33, 1)))
    routing = StandardTopKOutput(given["topk_weights"], given["topk_ids"], given["router_logits"])
    hidden = torch.nn.functional.normalize(torch.randn(33, 16), dim=1)
    dispatched = StandardDispatchOutput(hidden.clone(), None, routing)
    output = cut.around_experts(Experts.run_moe_core, layer, dispatched).hidden_states
    weighed = (routing.topk_weights * (routing.topk_ids + 1)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(output, hidden * weighed)  # the pass itself is as it was
    used = given["topk_ids"][1:].unique().long()
    measured = torch.tensor(cut.listed()[0])[used]
    torch.testing.assert_close(measured, (used + 1) / (used.max() + 1), atol=1e-4, rtol=0)

    mean = {}
    for weighs, each in ((True, cut), (False, CappedPrefill())):
        each.set(share=0.8, layer=-1, rows=32, policy="lynx")
        each.before_batch(None, batch((0, 33, 1)))
        ids = each.around_topk(lambda **named: named, **given)["topk_ids"][1:]
        mean[weighs] = ids.unique().float().mean()
    assert mean[True] > mean[False] + 1  # the heavy ones
    measured = cut.listed()
    cut.around_experts(Experts.run_moe_core, layer, dispatched)
    assert cut.listed() == measured  # a cut's own outputs are not what is asked for
    cut.set(share=0.8, layer=-1, rows=32, policy="oea")
    cut.around_topk(lambda **named: named, **given)  # refuses contributions
    output = SimpleNamespace(internal_state={})
    cut.add_state(output, None, None)
    assert output.internal_state[STATE]["contributions"] is None


class FakePasses:
    """Passes whose KL falls with the share."""

    def __init__(self) -> None:
        self.runs: list[tuple[float, int]] = []

    def kl(self, share: float, layer: int = -1) -> list[list[float]]:
        self.runs.append((share, layer))
        return [[1.0 - share, 1.0 - share], [1.0 - share]]

    def state(self) -> dict[str, Any]:
        return {"layers": [3, 5], "active_experts": 8.0, "retained_mass": 0.9, "covered_mass": 0.95}


def test_passes_say_how_far_they_are_and_are_not_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passes, path = FakePasses(), tmp_path / "rows"
    shares, layer_kl = measure(passes, Journal(path, {}))  # type: ignore[arg-type]
    assert [row["share"] for row in shares] == list(SHARES)
    assert layer_kl == pytest.approx([1.0 - LAYER_SHARE] * 2)
    assert passes.runs[-2:] == [(LAYER_SHARE, 3), (LAYER_SHARE, 5)]
    shown = capsys.readouterr()
    assert "share 0.9: 8.0 active experts, 0.9500 covered mass" in shown.out
    for part in ("share 0.9: ", "next: share 0.8", "12/12", "next: layer 5 alone", "the last pass"):
        assert part in shown.err
    again = FakePasses()
    assert measure(again, Journal(path, {})) == (shares, layer_kl)  # type: ignore[arg-type]
    assert again.runs == []


def test_a_pass_that_caps_nothing_is_an_error(tmp_path: Path) -> None:
    passes = FakePasses()
    passes.state = lambda: {"layers": [3], "active_experts": None, "retained_mass": None}  # type: ignore[method-assign]
    with pytest.raises(EvaluationError, match=r"share 0\.9: nothing was capped"):
        measure(passes, Journal(tmp_path / "rows", {}))  # type: ignore[arg-type]
