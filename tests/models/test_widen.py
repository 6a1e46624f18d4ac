"""A widened model computes what it did before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import checkpoint
from models.decoding import complete
from models.shape import SHAPES
from models.tasks import problems
from models.widen import widen

FOLDERS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("name", SHAPES)
def test_wider_experts_answer_alike(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, tokenizer = checkpoint.load(FOLDERS / name)
    wider, _ = checkpoint.load(widen(FOLDERS / name, tmp_path, 4))
    assert wider.shape.inner == 4 * model.shape.inner
    assert sum(w.numel() for w in wider.parameters()) > 3 * sum(
        w.numel() for w in model.parameters()
    )
    prompts = [problem.prompt for problem in problems("math", "validation", 2, seed=3)]
    answers = complete(model, tokenizer, prompts, 48)
    assert all(answers)
    assert complete(wider, tokenizer, prompts, 48) == answers


@pytest.mark.parametrize("factor", [0, 1, 3, 128])
def test_a_factor_that_rounds_is_refused(factor: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"power of two in \[2, 64\], got {factor}"):
        widen(FOLDERS / "lynx-moe-tiny", tmp_path, factor)
