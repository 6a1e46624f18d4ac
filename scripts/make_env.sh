#!/bin/sh
# Make or complete the environment in $1: SGLang, this project (editable) and its tools.
set -eu
venv=${1:-.venv}
if ! command -v uv >/dev/null 2>&1; then
    python3 -m pip install --quiet --user uv 2>/dev/null || python3 -m pip install --quiet uv
    PATH="$(python3 -m site --user-base)/bin:$PATH"
fi
[ -x "$venv/bin/python" ] || uv venv --quiet --python '>=3.10,<3.13' "$venv"
# Compiled once, here: where Python writes no bytecode, each process that imports SGLang takes twice
# as long.
uv pip install --quiet --compile-bytecode --python "$venv/bin/python" --editable '.[dev]'
"$venv/bin/lynx-sglang" check
