"""Training: an interrupted run goes on as if it had not been; the bias evens out the load."""

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from models import checkpoint, train
from models.model import Model
from models.recipe import Recipe
from models.shape import Grouping, Shape
from models.tasks import problems
from models.vocabulary import train_tokenizer

SMALL = Shape(
    vocabulary=320,
    layers=2,
    hidden=24,
    heads=2,
    kv_heads=1,
    head_dim=8,
    experts=8,
    top_k=2,
    inner=8,
    grouping=Grouping(groups=2, kept_groups=1, scale=2.0),
    shared_experts=1,
)


Run = Callable[..., Path]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Trains a small model into a folder of this name, in this process."""
    torch.manual_seed(0)
    words = [problem.prompt for problem in problems("code", "train", 50, seed=0)]
    fresh = tmp_path / "fresh"
    checkpoint.save(Model(SMALL), train_tokenizer(words, SMALL.vocabulary), fresh)
    monkeypatch.setattr(train, "validate", lambda *_: {})
    meetings = (tmp_path / f"meeting-{number}" for number in itertools.count())

    def start(name: str, recipe: Recipe, resume: bool = False) -> Path:
        out = tmp_path / name
        arguments = argparse.Namespace(
            out=out, shape="lynx-moe-tiny", start=fresh, gsm8k=None, resume=resume
        )
        try:
            train.train(0, recipe, arguments, str(next(meetings)))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        return out

    return start


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(steps=6, workers=1, batch=2, save_every=2, warmup_steps=2)
    whole = run("whole", recipe)
    endless = train.batches
    with monkeypatch.context() as patch:

        def cut(*arguments: Any) -> Iterator[Any]:
            yield from itertools.islice(endless(*arguments), 3)
            raise KeyboardInterrupt

        patch.setattr(train, "batches", cut)
        with pytest.raises(KeyboardInterrupt):
            run("cut", recipe)
    resumed = run("cut", recipe, resume=True)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(ValueError, match="begun with other settings"):
        run("cut", Recipe(steps=6, workers=1, batch=4), resume=True)


def test_the_bias_moves_by_its_rate_and_stays_out_of_the_optimiser(run: Run) -> None:
    recipe = Recipe(steps=3, workers=1, batch=2, warmup_steps=1, stable_share=0.99)
    model, _ = checkpoint.load(run("bias", recipe))
    for experts in model.moe_layers():
        assert experts.bias is not None
        moved = experts.bias / recipe.bias_rate
        torch.testing.assert_close(moved, moved.round(), atol=1e-3, rtol=0)
        assert 0 < moved.abs().max() <= 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"batch": 33}, "batch must be a multiple of workers, got 33"),
        ({"text_batch": 3}, "text_batch must be a multiple of workers, got 3"),
        ({"minutes": 0.0}, r"minutes must be above 0, got 0\.0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)
