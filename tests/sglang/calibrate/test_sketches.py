"""Sketches of a model: the fit against ridge regression, ranks within a budget, their files."""

from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from lynx_kernels.sketch import LayerSketches
from lynx_sglang import sketches
from lynx_sglang.calibrate.measure import calibrate, sketch_file
from lynx_sglang.calibrate.sketch_budget import allocate, hull, within
from lynx_sglang.calibrate.sketch_fit import Moments, fit
from lynx_sglang.calibrate.sketch_layer import ExpertSums, FittedLayer
from lynx_sglang.calibrate.sketch_sums import SketchSums, bytes_of_layer, groups_of
from lynx_sglang.errors import SettingError, UnsupportedError
from lynx_sglang.evaluation.server import EvaluationError
from lynx_sglang.sketches import StandIns

H = 12
Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator)


def moments_of(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> Moments:
    sums = Moments.empty(x.shape[1])
    sums.note(x, y, weights)
    return sums


@pytest.fixture
def tokens() -> Tokens:
    """An affine map of x through a curve, and weights as routers give them."""
    x = drawn(200, H) + 1
    y = torch.tanh(x @ drawn(H, H, seed=3) / 3) + 0.5
    return x, y, torch.rand(200, generator=torch.Generator().manual_seed(1))


def test_rank_0_is_the_mean_and_full_rank_is_ridge(tokens: Tokens) -> None:
    x, y, weights = tokens
    ridge = 0.1
    got = fit(moments_of(x, y, weights), ridge, is_centred=True)
    root = weights.double().sqrt().unsqueeze(1)
    mean_x, mean_y = (
        (weights.double() @ each.double()) / weights.double().sum() for each in (x, y)
    )
    a, b = root * (x.double() - mean_x), root * (y.double() - mean_y)
    gram = a.t() @ a
    expected = torch.linalg.solve(
        gram + ridge * gram.diagonal().mean() * torch.eye(H).double(), a.t() @ b
    )
    mean = got.at(0)
    assert mean.bias is not None
    torch.testing.assert_close(mean.bias, mean_y.float(), rtol=1e-5, atol=1e-5)
    full = LayerSketches.of([got.at(H)]).of_expert(0, x)
    torch.testing.assert_close(
        full, (mean_y + (x - mean_x) @ expected).float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("is_centred", [False, True])
def test_explained_energy_is_that_of_the_sketch(tokens: Tokens, is_centred: bool) -> None:
    x, y, weights = tokens
    got = fit(moments_of(x[:100], y[:100], weights[:100]), 0.01, is_centred)
    x, y, weights = x[100:], y[100:], weights[100:]
    energies = got.explained(moments_of(x, y, weights))
    for rank in (0, 1, 5, H):
        misses = y - LayerSketches.of([got.at(rank)]).of_expert(0, x)
        expected = (weights.unsqueeze(1) * (y.square() - misses.square())).sum()
        assert float(energies[rank]) == pytest.approx(float(expected), rel=1e-4, abs=1e-3)


def test_ranks_are_the_best_of_their_size(tokens: Tokens) -> None:
    """On its own tokens and without a ridge, no other map of a rank explains more."""
    x, y, weights = tokens
    sums = moments_of(x, y, weights)
    energies = fit(sums, 0.0, is_centred=True).explained(sums)
    gains = energies.diff()
    assert (gains >= -1e-6).all()
    assert (gains.diff() <= 1e-6).all()


def test_sums_stream(tokens: Tokens) -> None:
    x, y, weights = tokens
    parts = Moments.empty(H)
    for some in torch.arange(200).split(33):
        parts = parts + moments_of(x[some], y[some], weights[some])
    whole = moments_of(x, y, weights)
    torch.testing.assert_close(parts.xy, whole.xy, rtol=1e-9, atol=1e-9)
    assert parts.energy == pytest.approx(whole.energy)


def test_fewer_tokens_than_dimensions_give_a_sketch_of_them(tokens: Tokens) -> None:
    x, y, weights = (each[:5] for each in tokens)
    got = fit(moments_of(x, y, weights), 0.0, is_centred=False)
    torch.testing.assert_close(
        LayerSketches.of([got.at(5)]).of_expert(0, x), y, rtol=1e-3, atol=1e-3
    )


def test_a_fit_names_what_it_cannot_take(tokens: Tokens) -> None:
    with pytest.raises(ValueError, match="sums: expected tokens"):
        fit(Moments.empty(H), 0.1, is_centred=True)
    with pytest.raises(ValueError, match="ridge: expected at least 0, got -1"):
        fit(moments_of(*tokens), -1, is_centred=True)


def test_the_hull_drops_what_a_mixture_beats() -> None:
    assert hull([(1, 1.0), (2, 1.5), (3, 4.0), (4, 4.0), (5, 3.0), (6, 5.0)]) == [2, 5]
    assert hull([(1, -1.0), (2, 0.0)]) == []


def test_bytes_go_where_they_explain_most() -> None:
    options = [[(1, 5.0), (2, 6.0)], [(1, 3.0), (2, 5.5)], [(1, 0.0)]]
    assert allocate(options, 0) == [None, None, None]
    assert allocate(options, 1) == [0, None, None]
    assert allocate(options, 3) == [0, 1, None]
    assert allocate(options, 9) == [1, 1, None]


def test_allocation_keeps_its_budget_and_is_near_the_best() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        options = [
            [
                (1 + 2 * i, float(g))
                for i, g in enumerate(torch.rand(3, generator=generator).cumsum(0))
            ]
            for _ in range(3)
        ]
        chosen = allocate(options, 7)

        def total(picks, column, options=options):
            return sum(options[e][p][column] for e, p in enumerate(picks) if p is not None)

        assert total(chosen, 0) <= 7
        best = max(
            total(picks, 1)
            for picks in itertools.product((None, 0, 1, 2), repeat=3)
            if total(picks, 0) <= 7
        )
        assert total(chosen, 1) >= best / 2


def fitted_layer(tokens: Tokens, *, spares_judges: bool = True) -> FittedLayer:
    """Two experts of the same tokens, the second with outputs of a hundredth; the third unused."""
    x, y, weights = tokens
    experts = [
        ExpertSums(
            moments_of(x[:150], scale * y[:150], weights[:150]),
            moments_of(x[150:], scale * y[150:], weights[150:]),
        )
        for scale in (1.0, 0.01)
    ]
    return FittedLayer.of([*experts, ExpertSums.empty(H)], spares_judges=spares_judges)


def test_a_layer_says_what_it_explains_and_misses(tokens: Tokens) -> None:
    x, y, weights = tokens
    layer = fitted_layer(tokens)
    for form in (0, 1):
        for rank in (0, 3, H):
            sketch = LayerSketches.of([layer.sketch(0, form, rank)])
            misses = weights.unsqueeze(1) * (y - sketch.of_expert(0, x)).square()
            energy = weights.unsqueeze(1) * y.square()
            assert float(layer.missed[0, form, rank]) == pytest.approx(
                float(misses.sum()), rel=1e-4, abs=1e-3
            )
            explained = float((energy - misses)[150:].sum())
            assert float(layer.explained[0, form, rank]) == pytest.approx(
                explained, rel=1e-4, abs=1e-3
            )


def test_bytes_go_to_the_experts_that_weigh(tokens: Tokens) -> None:
    found = within({4: fitted_layer(tokens), 7: fitted_layer(tokens)}, 2 * (6 * H + H))
    assert list(found.layers) == [4, 7]
    for layer in (4, 7):
        heavy, light, unused = found.ranks[layer]
        assert heavy >= 2
        assert light == unused == 0
        each = found.layers[layer]
        assert int(each.sketches.sizes.sum()) <= 7 * H
        assert each.cover[0] > 0.5
        assert each.cover[1:].tolist() == [0.0, 0.0]
        assert each.contribution.max() == 1.0
        assert each.contribution[2] in each.contribution[:2]  # of no tokens: as the median one
        assert found.unexplained[layer] < 0.2
    nothing = within({4: fitted_layer(tokens)}, 0)
    assert nothing.unexplained[4] == 1.0
    assert int(nothing.layers[4].sketches.sizes.sum()) == 0


def test_a_fitted_layer_comes_back_from_its_file(tokens: Tokens, tmp_path: Path) -> None:
    layer = fitted_layer(tokens, spares_judges=False)
    layer.save(tmp_path / "layer")
    again = FittedLayer.load(tmp_path / "layer")
    for one in fields(FittedLayer):
        assert torch.equal(getattr(layer, one.name), getattr(again, one.name))


def test_sums_of_other_layers_and_of_shared_experts_are_left_out(tmp_path: Path) -> None:
    sums, x = SketchSums([5]), drawn(6, H)
    ids, judges = torch.tensor([0, 1, 0, 2, -1, 0]), torch.tensor([True, False] * 3)
    sums.note(3, 2, x, ids, torch.ones(6), 2 * x, judges)
    sums.note(5, 2, x, ids, torch.ones(6), 2 * x, judges)
    sums.fit(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["layer-5.safetensors"]
    layer = FittedLayer.load(tmp_path / "layer-5.safetensors")
    assert layer.mass.tolist() == [3.0, 1.0]
    assert layer.judged[0] == pytest.approx(4 * float(x[[0, 2]].square().sum()))


def test_layers_are_fitted_in_groups_that_memory_holds() -> None:
    assert groups_of([0, 1, 2], 64, 128) == [[0, 1, 2]]
    assert groups_of([3, 4], 128, 2048) == [[3], [4]]
    assert bytes_of_layer(128, 2048) == pytest.approx(17.2e9, rel=0.01)


def stand_ins(tokens: Tokens) -> dict[int, StandIns]:
    return within({2: fitted_layer(tokens), 5: fitted_layer(tokens)}, 20 * H).layers


def test_sketches_come_back_from_their_file(tokens: Tokens, tmp_path: Path) -> None:
    made, path = stand_ins(tokens), tmp_path / "model.safetensors"
    digest = sketches.save(path, made)
    again = sketches.load(path, digest, [2, 5], 3)
    for layer in (2, 5):
        assert torch.equal(made[layer].cover, again[layer].cover)
        assert torch.equal(made[layer].contribution, again[layer].contribution)
        for one in fields(LayerSketches):
            there, here = (getattr(x[layer].sketches, one.name) for x in (made, again))
            assert torch.equal(there, here)
    with pytest.raises(SettingError, match="are not those that it was measured with"):
        sketches.load(path, "0" * 64, [2, 5], 3)
    with pytest.raises(SettingError, match=r"expected layers \[2\] of 3 experts, got \[2, 5\]"):
        sketches.load(path, digest, [2], 3)
    with pytest.raises(SettingError, match="cannot be read"):
        sketches.load(tmp_path / "none", digest, [2], 3)


def test_weights_are_told_apart_however_they_are_split(tmp_path: Path) -> None:
    tensors = {"a": drawn(40, 40), "b": drawn(30, 2)}

    def fingerprint(name: str, **files: dict[str, torch.Tensor]) -> str:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            save_file(content, tmp_path / name / f"{file}.safetensors")
        return sketches.weights_fingerprint(str(tmp_path / name))

    whole = fingerprint("whole", model=tensors)
    split = fingerprint("split", one={"b": tensors["b"]}, two={"a": tensors["a"]})
    tuned = fingerprint("tuned", model=tensors | {"b": tensors["b"] * 1.001})
    assert whole == split != tuned
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="sketches are of weights in safetensors files"):
        sketches.weights_fingerprint(str(tmp_path / "empty"))


def test_a_layer_that_scales_its_weights_is_refused() -> None:
    config = SimpleNamespace(layer_id=3, apply_router_weight_on_input=False)
    weights = torch.ones(2, 2)
    sketches.require_weights(config, weights, weights.clone())
    with pytest.raises(UnsupportedError, match="layer 3 scales its router weights"):
        sketches.require_weights(config, weights, 2 * weights)
    config.apply_router_weight_on_input = True
    with pytest.raises(UnsupportedError, match="layer 3"):
        sketches.require_weights(config, weights, weights)


def test_sketches_never_lie_beside_the_models_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    args = SimpleNamespace(
        tokens=512, rows=16, quality_loss=0.01, sketch_bytes=0.05, model_path=str(tmp_path),
        out=tmp_path / "model.json", text=tmp_path / "none",
    )  # fmt: skip
    with pytest.raises(EvaluationError, match="--out: expected a file outside of the model's"):
        calibrate(args)  # type: ignore[arg-type]
    assert sketch_file(tmp_path / "model.json").name == "model.sketches.safetensors"
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"
