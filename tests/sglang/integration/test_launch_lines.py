"""Published launch lines with --moe-backend lynx, through SGLang's own resolution of arguments.

``launch_lines.jsonl`` has 176 lines of published recipes (sgl-project/sgl-cookbook at 7b5bd9c,
Apache-2.0: the arguments alone), then lines of ours for what they lack. ``by``: what a served
line's experts run by, or what a refusal names.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lynx_sglang import launch_line
from lynx_sglang.errors import LynxError

HERE = Path(__file__).parent
LINES = HERE / "launch_lines.jsonl"
REFUSED = re.compile(
    r"--\S+ .*is not served( on a GPU| on a CPU)?: .+\. (Remove|Add|Start|Serve|Load|Choose) .+\."
    r"|.* has no routed experts to share \(a dense model\)\. Serve it without --moe-backend lynx\."
)
BY_SGLANG = re.compile(r"by SGLang itself, with or without lynx: .+|sglang serve: error: .+")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run = subprocess.run(
        [sys.executable, HERE / "resolve_lines.py", LINES, tmp_path_factory.mktemp("models")],
        capture_output=True, text=True, timeout=900, check=False, cwd=HERE,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def test_every_line_is_served_or_refused_as_expected(answers: list[dict[str, Any]]) -> None:
    expected = [json.loads(line) for line in LINES.read_text().splitlines()]
    assert len(answers) == len(expected)
    for line, answer in zip(expected, answers, strict=True):
        assert answer["verdict"] == line["verdict"], answer
        if line["by"] != "SGLang":
            assert line["by"] in answer["text"], answer


def test_a_refusal_is_one_line_with_flag_reason_and_remedy(answers: list[dict[str, Any]]) -> None:
    own = 0
    for answer in answers:
        assert "\n" not in answer["text"]
        if answer["verdict"] == "refused" and BY_SGLANG.fullmatch(answer["text"]):
            own += 1
        elif answer["verdict"] == "refused":
            assert REFUSED.fullmatch(answer["text"]), answer
    assert own == 3  # two of an option's old name or backend, which SGLang 0.5.23 refuses


def test_all_lines_are_classified(answers: list[dict[str, Any]]) -> None:
    counts = Counter(answer["verdict"] for answer in answers)
    assert counts == {"served": 93, "refused": 122}
    assert Counter(answer["verdict"] for answer in answers[:176]) == {"served": 74, "refused": 102}


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("-- python -m sglang.launch_server --model-path m --tp 2", "--model-path m --tp 2"),
        ("-- A=1 python3 -m sglang.launch_server --model m", "--model m"),
        ("sglang serve Qwen/Q --tp 8", "--model-path Qwen/Q --tp 8"),
        ("sglang serve --model-path m", "--model-path m"),
    ],
)
def test_both_forms_of_a_launch_line(line: str, options: str) -> None:
    assert launch_line.options_of(line.split()) == options.split()


@pytest.mark.parametrize("line", ["--", "vllm serve m", "python app.py"])
def test_another_line_is_an_error(line: str) -> None:
    with pytest.raises(LynxError, match="sglang serve"):
        launch_line.options_of(line.split())


def test_what_is_not_on_this_machine_is_said() -> None:
    line = "sglang serve nobody/nothing --moe-backend lynx"
    run = subprocess.run(
        [sys.executable, "-m", "lynx_sglang", "check", "--", *line.split()],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr[-2000:]
    assert "unknown: the configuration of nobody/nothing is not on this machine" in run.stdout
