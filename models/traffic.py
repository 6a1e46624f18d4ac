"""Prompts and answers of the bundled tasks, as a server would see them.

python models/traffic.py --out build/traffic.jsonl      # training problems
lynx-sglang calibrate --model-path models/lynx-moe-tiny --text build/traffic.jsonl ...
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

from tasks import SPLITS, TASKS, stream
from vocabulary import TURN_END, chat_prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=64, help="problems of each task")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pools = [islice(stream(task, options.split, options.seed), options.count) for task in TASKS]
    lines = [
        json.dumps({"prompt": chat_prompt(each.prompt), "answer": each.solution + TURN_END})
        for pair in zip(*pools, strict=True)
        for each in pair
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
