"""Predicted cost of the fused MoE layer on a device, before any measurement.

    python -m benchmarks.gpu.model [--bandwidth-tb-s 4.3]

bytes  = T experts' weights + rows in and out + activations out and in
floor  = bytes / copy bandwidth
time   = bytes / (copy bandwidth * STREAM_SHARE) + fixed cost of each launch

bench.py measures the same points; its notes hold prediction and outcome side by side.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from benchmarks.command import command
from benchmarks.gpu.shapes import SHAPES, Shape, expected_union, targets_of

COPY_TB_S = 4.3  # an H200's large copy, read plus written
STREAM_SHARE = 4.2 / 4.3  # of the copy bandwidth, while tiles stream
GATE_UP_US = 2.0  # filling and draining the pipeline
DOWN_US = 1.5
SEAMS_US = 1.0  # two overlapped launches
COMBINE_US = 3.0  # above 64 rows: its launch, and products out to L2 and back
SELECT_US = {8: 3.0, 32: 4.5, 128: 6.0}  # up to that many rows
BATCHES = (1, 8, 16, 32, 64, 128)
# SGLang 0.5.23's chain, for the ratio that is to be expected: its products, and all else it does.
SGLANG_TB_S = 4.0
SGLANG_FIXED_US = {8: 16.0, 128: 18.0}


@dataclass(frozen=True, slots=True)
class Prediction:
    shape: Shape
    num_rows: int
    num_active: float
    bandwidth_tb_s: float

    @property
    def num_bytes(self) -> float:
        return self.shape.layer_bytes(self.num_rows, self.num_active)

    @property
    def floor_us(self) -> float:
        return self.num_bytes / self.bandwidth_tb_s / 1e6

    @property
    def fused_us(self) -> float:
        combine = COMBINE_US if self.num_rows > 64 else 0.0
        return self.floor_us / STREAM_SHARE + GATE_UP_US + DOWN_US + SEAMS_US + combine

    @property
    def layer_us(self) -> float:
        """With select."""
        return self.fused_us + up_to(SELECT_US, self.num_rows)

    @property
    def sglang_us(self) -> float | None:
        """None for fp8 weights, of which SGLang's times are known too unevenly to predict one."""
        if self.shape.scaled:
            return None
        scale = COPY_TB_S / self.bandwidth_tb_s
        return self.num_bytes / SGLANG_TB_S / 1e6 * scale + up_to(SGLANG_FIXED_US, self.num_rows)


def up_to(table: dict[int, float], num_rows: int) -> float:
    return next((cost for limit, cost in table.items() if num_rows <= limit), max(table.values()))


def predictions(shape: Shape, bandwidth_tb_s: float = COPY_TB_S) -> list[Prediction]:
    points = []
    for num_rows in BATCHES:
        uncapped = round(expected_union(shape, num_rows))
        for target in targets_of(shape, uncapped):
            points.append(Prediction(shape, num_rows, target, bandwidth_tb_s))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bandwidth-tb-s", type=float, default=COPY_TB_S)
    options = parser.parse_args()
    columns = (
        "model",
        "M",
        "T",
        "MB",
        "floor us",
        "fused us",
        "layer us",
        "over floor",
        "SGLang us",
    )
    print(f"Predicted, not measured: `python {command()}`, {options.bandwidth_tb_s} TB/s\n")
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for shape in SHAPES.values():
        for point in predictions(shape, options.bandwidth_tb_s):
            cells = (
                shape.name,
                point.num_rows,
                point.num_active,
                f"{point.num_bytes / 1e6:.1f}",
                f"{point.floor_us:.1f}",
                f"{point.fused_us:.1f}",
                f"{point.layer_us:.1f}",
                f"{point.layer_us / point.floor_us:.2f}",
                "-" if point.sglang_us is None else f"{point.sglang_us:.1f}",
            )
            print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
