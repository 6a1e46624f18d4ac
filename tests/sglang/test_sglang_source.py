"""Reading an SGLang that is not imported, and saying what it lacks."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from lynx_sglang import cli, sglang_contract
from lynx_sglang.sglang_names import Name
from lynx_sglang.sglang_source import NotSGLang, Source

FILES = {
    "sglang/__init__.py": "",
    "sglang/a/__init__.py": "from .b import Moved as Known\nfrom sglang.a.c import *\n",
    "sglang/a/b.py": '''
try:
    import torch
except ImportError:
    TABLE: dict = {}
class Base:
    kind: int = 0
    def run(self, batch, *, late=None): self.started, other = 1, 2
class Moved(Base):
    name: str
    class Inner: ...
    async def wait(self, *requests, **more): ...
class Made(Moved):
    def __init__(self, size):
        super().__init__()
        self.size = size
''',
    "sglang-9.9.dist-info/METADATA": "Version: 9.9",
}  # fmt: skip


@pytest.fixture(params=["folder", "wheel"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "wheel":
        wheel = tmp_path / "sglang-9.9-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in FILES.items():
                archive.writestr(name, text)
        return wheel
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sglang.a.b:Base.run", ("self", "batch", "late")),
        ("sglang.a.b:Moved.run", ("self", "batch", "late")),
        ("sglang.a:Known", ("kind", "name")),
        ("sglang.a:Known.wait", ("self", "requests", "more")),
        ("sglang.a.b:Made", ("size",)),
        ("sglang.a.b:TABLE", ()),
        ("sglang:a", ()),
    ],
)
def test_what_is_defined_is_found(path: Path, name: str, parameters: tuple[str, ...]) -> None:
    source = Source(path)
    assert source.version == "9.9"
    assert source.find(name) is not None
    assert source.parameters(name) == parameters


def test_attributes_are_those_of_all_bases(path: Path) -> None:
    own = {"size", "__init__"}
    inherited = {"kind", "name", "run", "started", "wait", "Inner"}
    assert Source(path).attributes("sglang.a.b:Made") == own | inherited


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (Name("sglang.a:Known", ("name",)), None),
        (Name("sglang.a:Known", ("name", "x", "y")), "sglang.a:Known: no parameter x, y"),
        (Name("sglang.a.b:Nowhere"), "sglang.a.b:Nowhere: gone"),
        (Name("sglang.old:Base"), "sglang.old:Base: gone; Base is in sglang.a.b:Base"),
        (Name("sglang.old:Base.run"), "sglang.old:Base.run: gone; Base is in sglang.a.b:Base"),
        (
            Name("sglang.a.b:Base.wait"),
            "sglang.a.b:Base.wait: gone; wait is in sglang.a.b:Moved.wait",
        ),
    ],
)
def test_a_fault_says_where_the_name_went(path: Path, name: Name, fault: str | None) -> None:
    assert sglang_contract.name_fault(Source(path), name) == fault


def test_what_is_no_sglang_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(NotSGLang, match=str(path)):
            Source(path)


def test_check_against_a_wheel_reports(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--against", str(path)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("sglang 9.9: NOT supported\n")
    assert "missing: sglang.srt.managers.scheduler:Scheduler.run_batch: gone\n" in text
    assert cli.main(["check", "--against", str(path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err


def test_changed_parameters_are_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Name("sglang.a.b:Made")
    monkeypatch.setattr("lynx_sglang.sglang_names.names_of", lambda _version: (name,))
    after, before = Source(path), Source(path)
    monkeypatch.setattr(before, "parameters", lambda _path: ("old",))
    assert list(sglang_contract.changes(after, before)) == [f"{name.path}: parameters +size -old"]
