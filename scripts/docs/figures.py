"""Drawings of the documentation, inline: their colours are the theme's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from scripts.docs import select_figure

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "figures"


def drawn(path: Path) -> str:
    """A drawing as HTML that Markdown leaves as it is: no blank line ends the block."""
    return framed(path.read_text())


def framed(svg: str) -> str:
    lines = "\n".join(line.strip() for line in svg.splitlines() if line.strip())
    return f'<div class="drawing">{lines}</div>'


FIGURES: Mapping[str, Callable[[], str]] = {
    **{path.stem: partial(drawn, path) for path in FOLDER.glob("*.svg")},
    "select": lambda: framed(select_figure.draw()),
}
