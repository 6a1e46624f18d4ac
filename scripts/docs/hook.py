"""MkDocs hook: directives, links and formulas of the documentation.

A page may hold directives, each on a line of its own:

    <!-- include: PATH -->              a Markdown file of the repository
    <!-- include: PATH until HEADING -->  the part of it before a heading
    <!-- table: NAME -->                a table made from the code or from committed results
    <!-- figure: NAME -->               a drawing, inline, so that it follows the colour scheme

A directive, link or formula that cannot be resolved ends the build.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
# The pages describe this checkout, whatever version is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "controller")]

from scripts.docs import figures, formulas, tables  # noqa: E402

DOCS = ROOT / "docs"
DIRECTIVE = re.compile(r"^<!-- (include|table|figure): (\S+)(?: until (.+))? -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_config(config: Any) -> Any:
    """Note which page shows which file of the repository."""
    config.extra["page_of"] = pages_by_source()
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the directives of a page and make its links lead to pages."""
    here = page.file.src_uri

    def expand(match: re.Match[str]) -> str:
        kind, name, end = match.groups()
        if kind == "include":
            return linked(source(name, end, here), ROOT / posixpath.dirname(name), here, config)
        makers = tables.TABLES if kind == "table" else figures.FIGURES
        if name not in makers:
            raise PluginError(f"{here}: no such {kind}: {name}")
        return makers[name]()

    return DIRECTIVE.sub(expand, linked(markdown, DOCS, here, config))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Turn the formulas of a page into MathML."""
    try:
        return formulas.typeset(html)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def pages_by_source() -> dict[str, str]:
    """Paths of the repository by the page that shows them: its own source and what it includes."""
    pages = {}
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).as_posix()
        pages[f"docs/{page}"] = page
        for kind, name, end in DIRECTIVE.findall(path.read_text()):
            if kind == "include" and not end:
                pages[name] = page
    return pages


def source(name: str, end: str | None, here: str) -> str:
    """The text of a file of the repository, up to the heading ``end`` where one is given."""
    path = ROOT / name
    if not path.is_file():
        raise PluginError(f"{here}: includes {name}, which does not exist")
    text = path.read_text()
    if end and f"\n{end}\n" not in text:
        raise PluginError(f"{here}: {name} has no heading {end!r}")
    return text.partition(f"\n{end}\n")[0] if end else text


def linked(markdown: str, base: Path, here: str, config: Any) -> str:
    """``markdown`` of a file in ``base``, its links relative to page ``here``; code is left."""

    def link(match: re.Match[str]) -> str:
        is_image, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match.group()
        path, _, anchor = target.partition("#")
        place = resolved(base, path, here)
        page = config.extra["page_of"].get(place)
        if page is None and place.startswith("docs/"):
            page = place.removeprefix("docs/")
        if page is not None:
            address = posixpath.relpath(page, posixpath.dirname(here) or ".")
            return f"{is_image}[{text}]({address}{'#' * bool(anchor)}{anchor})"
        if is_image:
            raise PluginError(f"{here}: the picture {target} is not in docs/")
        return f"[{text}]({config.repo_url}/blob/main/{place})" if config.repo_url else text

    # Fenced blocks are at odd places.
    fences = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(fences))


def resolved(base: Path, path: str, here: str) -> str:
    target = Path(os.path.normpath(base / path))
    if not target.exists():
        raise PluginError(f"{here}: broken link to {path}")
    return target.relative_to(ROOT).as_posix()
