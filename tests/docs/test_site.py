"""The site builds strictly, shows what the code has, and answers its front page's questions."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from lynx_controller import Reason
from lynx_kernels import POLICIES
from lynx_sglang import settings
from lynx_sglang.loop import changes

ROOT = Path(__file__).resolve().parents[2]


class Page(html.parser.HTMLParser):
    """Links, anchors and text of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name == "id" and value:
                self.anchors.add(value)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages of a strict build by their files."""
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    return {path: Page(path) for path in folder.rglob("index.html")}


def page(site: dict[Path, Page], name: str) -> Page:
    (found,) = [each for path, each in site.items() if path.parent.name == name]
    return found


def test_links_lead_to_files_and_anchors_of_the_site(site: dict[Path, Page]) -> None:
    lost = []
    for path, built in site.items():
        for link in built.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                lost.append((path.parent.name, link))
            elif target in site and address.fragment:
                anchor = unquote(address.fragment)
                lost += [] if anchor in site[target].anchors else [(path.parent.name, link)]
    assert not lost


def test_nothing_is_fetched_from_elsewhere(site: dict[Path, Page]) -> None:
    for built in site.values():
        assets = [link for link in built.links if urlsplit(link).path.endswith((".js", ".css"))]
        assert not [link for link in assets if urlsplit(link).netloc]


@pytest.mark.parametrize("name", settings.OPTIONS)
def test_the_settings_page_has_every_setting(site: dict[Path, Page], name: str) -> None:
    text = " ".join(page(site, "settings").text.split())
    metadata = settings.OPTIONS[name].metadata
    about = " ".join(metadata["about"].replace("`", "").split())
    for part in (settings.flag_of(name), settings.variable_of(name), metadata["allowed"], about):
        assert part in text


def test_the_metrics_page_has_every_metric(site: dict[Path, Page]) -> None:
    text = page(site, "metrics").text
    rooms = (ROOT / "lynx_sglang/loop").glob("*.py")
    sources = [path.read_text() for path in rooms if path.stem in ("metrics", "telemetry")]
    spelled = re.compile(r'"(?:sglang:)?(lynx_[a-z_]+)"')
    names = {name for source in sources for name in spelled.findall(source)}
    assert len(names) > 10
    assert not [name for name in sorted(names) if f"sglang:{name}" not in text]


def test_live_changes_name_every_key(site: dict[Path, Page]) -> None:
    text = page(site, "operate").text
    assert not [name for name in changes.UPDATABLE if f"lynx_{name}" not in text]


def test_every_reason_of_a_decision_is_explained(site: dict[Path, Page]) -> None:
    text = page(site, "operate").text
    assert not [reason for reason in Reason if reason.value not in text]


def test_every_policy_is_named(site: dict[Path, Page]) -> None:
    text = page(site, "extending").text
    assert not [name for name in POLICIES if name not in text]


def test_the_structures_page_has_every_module_with_its_responsibility(
    site: dict[Path, Page],
) -> None:
    text = page(site, "structures").text
    for package in ("lynx_sglang", "kernels/lynx_kernels", "controller/lynx_controller"):
        modules = [path.stem for path in (ROOT / package).rglob("*.py")]
        assert not [name for name in modules if name != "__init__" and name not in text]


def test_no_directive_and_no_formula_is_left(site: dict[Path, Page]) -> None:
    for path, built in site.items():
        assert "<!-- include:" not in path.read_text()
        assert "<!-- table:" not in path.read_text()
        assert "arithmatex" not in path.read_text()
        assert "$$" not in built.text


@pytest.mark.parametrize(
    ("question", "name", "answer"),
    [
        ("Where is the budget decided?", "structures", "decide/law.py"),
        ("How do I add a policy?", "extending", "select/policies.py"),
        ("What happens when Redis dies?", "operate", "Serving goes on"),
        ("Why does a server refuse to start with --enable-eplb?", "supported", "--enable-eplb"),
    ],
)
def test_a_question_is_answered_one_click_from_the_front(
    site: dict[Path, Page], question: str, name: str, answer: str
) -> None:
    (front,) = [built for path, built in site.items() if page_depth(path, site) == 0]
    assert any(urlsplit(link).path.rstrip("/") == name for link in front.links), question
    assert answer in page(site, name).text, question


def page_depth(path: Path, site: dict[Path, Page]) -> int:
    return len(path.parts) - min(len(each.parts) for each in site)
