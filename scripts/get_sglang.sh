#!/bin/sh
# Unpack the SGLang that the folder $2 is named after there, without what it depends on.
set -eu
python=$1 folder=$2
PATH="$PATH:$(python3 -m site --user-base)/bin"
rm -rf "$folder.part"
uv pip install --quiet --python "$python" --no-deps --target "$folder.part" \
    "sglang==${folder##*sglang-}"
"$python" -m compileall -q "$folder.part/sglang"
mv "$folder.part" "$folder"
