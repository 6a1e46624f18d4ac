"""Formulas of the documentation as MathML: browsers typeset it, with no script and no font."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def typeset(page: str) -> str:
    """A page's HTML with its formulas, marked by ``arithmatex``, as MathML.

    Raises:
        ValueError: a formula uses a command that is not known.
    """
    return FORMULA.sub(lambda match: formula(html.unescape(match[2]), match[1] == "div"), page)


def formula(tex: str, is_block: bool) -> str:
    source = tex.replace("{aligned}", "{split}")
    markup = convert(source, display="block" if is_block else "inline")
    if unknown := re.search(r"\\[A-Za-z]+", markup):
        raise ValueError(f"the formula {tex!r} uses {unknown[0]}, which is not known")
    return f'<div class="formula">{markup}</div>' if is_block else markup
