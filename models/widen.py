"""The same model with wider experts: more bytes to read and multiply, the same function.

    python -m models.widen models/lynx-moe-tiny build/models/lynx-moe-tiny-x8 --factor 8

An expert is down(silu(gate(x)) * up(x)), a sum over its inner neurons. Each neuron is repeated
`factor` times and its output weights are divided by as much (Net2WiderNet: Chen, Goodfellow and
Shlens, ICLR 2016), so the sum stays what it was; a power of two divides bf16 without rounding.

A model of 20 MB spends most of a CPU's decode step outside its experts, in costs per operation that
do not shrink with it. Widened, its experts weigh in a step as those of a real model do, while its
answers, its routing and its size in the repository stay the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"
INNER = "moe_intermediate_size"  # shared experts are a multiple of it wide, so they widen too
EXPERTS = (".experts.", ".shared_experts.")


def widen(source: Path, target: Path, factor: int) -> Path:
    """Write the model in folder ``source`` to ``target`` with ``factor`` times the inner neurons.

    Raises:
        ValueError: factor is no power of two in [2, 64].
    """
    if factor not in (2, 4, 8, 16, 32, 64):
        raise ValueError(f"factor must be a power of two in [2, 64], got {factor}")
    tensors = {
        name: _wider(name, tensor, factor) if any(part in name for part in EXPERTS) else tensor
        for name, tensor in load_file(str(source / WEIGHTS)).items()
    }
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    config[INNER] *= factor
    shutil.copytree(
        source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS, CONFIG)
    )
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, str(target / WEIGHTS), metadata={"format": "pt"})
    return target


def _wider(name: str, weight: Tensor, factor: int) -> Tensor:
    """Of gate and up projections [inner, hidden] or a down projection [hidden, inner]."""
    if name.endswith("down_proj.weight"):
        return weight.repeat(1, factor) / factor
    return weight.repeat(factor, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a model that checkpoint.py wrote")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--factor", type=int, default=8, help="power of two (%(default)s)")
    options = parser.parse_args()
    try:
        widen(options.source, options.target, options.factor)
    except (OSError, ValueError) as error:
        print(f"widen: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
