"""Prompts and answers of the bundled tasks, as a server would see them.

python -m models.traffic --out build/traffic.jsonl      # training problems
lynx-sglang calibrate --model-path models/lynx-moe-tiny --text build/traffic.jsonl ...
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

from models.tasks import SPLITS, TASKS, stream
from models.vocabulary import TURN_END, chat_prompt


def traffic(split: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` problems of each task in turn: what a client sends, and the answer it should get."""
    pools = [islice(stream(task, split, seed), count) for task in TASKS]
    return [
        {"prompt": chat_prompt(each.prompt), "answer": each.solution + TURN_END}
        for pair in zip(*pools, strict=True)
        for each in pair
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=64, help="problems of each task")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = [json.dumps(row) for row in traffic(options.split, options.count, options.seed)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
