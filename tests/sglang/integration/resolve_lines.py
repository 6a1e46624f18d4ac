"""Resolves launch lines with SGLang's own code, with --moe-backend lynx added.

    python resolve_lines.py LINES FOLDER

A line's gpu is the compute capability times ten of the GPU that it was published for. Prints a
line of JSON for each launch line.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from stand_ins import stand_in

from lynx_sglang import launch_line


def main(lines: Path, folder: Path) -> None:
    warnings.simplefilter("ignore")
    for text in lines.read_text().splitlines():
        line = json.loads(text)
        model = stand_in(line["model"], line["quantization"], folder)
        options = ["--model-path", str(model), *line["args"], "--moe-backend", "lynx"]
        answer = launch_line.answer(options, line["gpu"])
        print(json.dumps({**line, "verdict": answer.verdict, "text": answer.text}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
