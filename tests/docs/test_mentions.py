"""Flags, variables, commands, files, metrics and keys that the documentation names exist."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from lynx_sglang import settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *(ROOT / name for name in ("kernels/README.md", "controller/README.md", "models/README.md")),
    *(ROOT / name for name in ("controller/COSTMODEL.md", "controller/MEASURED.md")),
    ROOT / "benchmarks/README.md",
    *(ROOT / f"benchmarks/{name}/README.md" for name in ("frontier", "cellscope")),
]
PAGES = [page for page in PAGES if page.is_file()]
CODE = re.compile(
    r"^```\w*\n(.*?)^```|^(?: {4}|\t)(\S[^\n]*)$|`([^`\n]+)`", re.MULTILINE | re.DOTALL
)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
OTHER_FLAGS = {"--from-dataset", "--help"}  # sgl-eval's; every parser's
FOREIGN = ("uvx", "uv ", "pip ", "curl", "python3 -m pip", "ncu", "locust")  # other programs
OWN_FOLDERS = tuple(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "build")
KEYS = {"lynx_sglang", "lynx_kernels", "lynx_controller", "lynx_cpu"}


@cache
def code_of(page: Path) -> tuple[str, ...]:
    """Code spans and lines of code blocks of a Markdown file, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    found = [part for groups in CODE.findall(text) for part in groups if part]
    return tuple(line.strip() for part in found for line in part.splitlines())


@cache
def sglang_flags() -> frozenset[str]:
    """Flags of SGLang's server and of its programs, read from its sources, without importing it."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    groups = (folder / "srt/arg_groups/fields").rglob("*.py")
    names = [name for path in groups for name in re.findall(r"^\s+(\w+): ", path.read_text(), re.M)]
    programs = [folder / "test/run_eval.py", folder / "bench_serving.py"]
    return frozenset("--" + name.replace("_", "-") for name in names) | literals(programs)


def literals(paths: list[Path]) -> frozenset[str]:
    """Flags that programs give to their parsers."""
    found = re.compile(r"""["'](--[a-z][a-z0-9-]+)["']""")
    return frozenset(flag for path in paths for flag in found.findall(path.read_text()))


@cache
def known_flags() -> frozenset[str]:
    own = {settings.flag_of(name) for name in (*settings.OPTIONS, "config")}
    folders = ("lynx_sglang", "controller", "benchmarks", "loadtests", "models", "examples")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return literals(sources) | own | sglang_flags()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page: Path) -> None:
    flags = {
        flag
        for line in code_of(page)
        if not line.startswith(FOREIGN)
        for flag in FLAG.findall(line)
        if flag not in ("--lynx-", "--strict")
    }
    assert not flags - known_flags() - OTHER_FLAGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_exist(page: Path) -> None:
    known = {settings.variable_of(name) for name in (*settings.OPTIONS, "config")}
    assert not set(re.findall(r"\bLYNX_[A-Z][A-Z_]+\b", page.read_text())) - known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.M))
    command = (ROOT / "lynx_sglang/cli.py").read_text()
    verbs = set(re.findall(r"""add_parser\(\s*["']([a-z-]+)["']""", command))
    missing = []
    for line in code_of(page):
        if match := re.match(r"make ([a-z0-9 -]+?)(?=\s+[A-Z#]|\s*$|\s{2,})", line):
            missing += [name for name in match[1].split() if name not in targets]
        if match := re.search(r"\blynx-sglang ([a-z-]+)", line):
            missing += [match[1]] if match[1] not in verbs and "[" not in line else []
        for module in re.findall(r"python3? -m ([\w.]+)", line):
            missing += [] if module_exists(module) else [module]
        for script in re.findall(r"python3? ([\w/]+\.py)", line):
            is_module = script.startswith(("benchmarks/", "loadtests/", "models/"))
            missing += [] if (ROOT / script).is_file() and not is_module else [script]
    assert not missing


def module_exists(name: str) -> bool:
    """Whether ``python -m name`` finds a module; no package is imported."""
    package, _, rest = name.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not rest:
        return spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    place = rest.replace(".", "/")
    return any(
        (folder / f"{place}.py").is_file() or (folder / place / "__main__.py").is_file()
        for folder in folders
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_exist(page: Path) -> None:
    named = re.compile(rf"(?<![\w/.-])((?:{'|'.join(OWN_FOLDERS)})/[\w./-]*\w)")
    paths = {path for line in code_of(page) for path in named.findall(line)}
    assert not [path for path in sorted(paths) if not exists(path)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_named_without_a_folder_exist(page: Path) -> None:
    named = {line for line in code_of(page) if re.fullmatch(r"\w+\.py", line)}
    assert not named - module_files()


@cache
def module_files() -> frozenset[str]:
    folders = (ROOT / folder for folder in OWN_FOLDERS if not folder.startswith("."))
    return frozenset(path.name for folder in folders for path in folder.rglob("*.py"))


def exists(path: str) -> bool:
    made = path.startswith(("models/NAME", "build/"))
    return made or (ROOT / path).exists() or bool(list(ROOT.glob(f"{path}*")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metrics_and_keys_exist(page: Path) -> None:
    named = {name for line in code_of(page) for name in re.findall(r"\blynx_[a-z_]*[a-z]\b", line)}
    known = KEYS | {f"lynx_{name}" for name in settings.OPTIONS} | metric_names()
    assert not named - known


@cache
def metric_names() -> frozenset[str]:
    """Metrics as telemetry spells them, with the suffixes that Prometheus adds."""
    source = "".join(path.read_text() for path in (ROOT / "lynx_sglang/loop").glob("*.py"))
    names = set(re.findall(r"\b(lynx_[a-z_]+)\b", source))
    names |= {f"lynx_{name}_total" for name in re.findall(r'"([a-z_]+)"', source)}
    return frozenset(
        names | {name + end for name in names for end in ("_bucket", "_sum", "_count")}
    )
