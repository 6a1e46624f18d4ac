"""The Triton kernels compile for GPUs that this machine does not have, within their limits.

A few of the variants in kernels/RESOURCES.md, which `python -m benchmarks.gpu.resources` makes of
all of them. In a process of its own: other tests may have imported Triton as an interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.resources import code_of

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "qwen3-30b:8:90": "products too narrow for a warpgroup",
    "qwen3-30b:64:90": "a concatenated down product",
    "qwen3-30b:128:90": "chunks, a product per expert, and combine",
    "qwen3-30b-fp8block:16:90": "block scales",
    "qwen3-30b-fp8row:16:100": "row scales",
    "qwen3-30b-fp8expert:128:90": "expert scales",
    "gpt-oss-120b:32:100": "biases, alternating rows, tensor memory",
    "qwen3-30b-prefetch2:8:90": "down weights fetched before the wait",
    "qwen3-30b-tma:8:90": "weights copied by the tensor memory accelerator",
    "qwen3-30b-fp8block-tma:64:100": "fp8 weights copied by it, tensor memory",
    "mixtral-tp2:16:80": "no warpgroups and no dependent launches",
    "select:64,128,8:80": "one launch",
    "select:64,128,8:90": "one launch, waiting inside",
    "select:256,512,8:100": "several programs",
    "select:300,128,8:90": "three launches",
    "select-alone:1024,512,10:90": "two launches",
}
MAX_SELECT_SHARED_BYTES = 48 * 1024  # what a program has everywhere, without asking for more


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.resources", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    done = run("--only", *VARIANTS)
    assert done.stdout, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_stays_within_its_limits(rows: list[dict[str, Any]]) -> None:
    assert {row["kernel"] for row in rows} == {
        "gate_up_kernel",
        "down_concat_kernel",
        "down_kernel",
        "combine_kernel",
        "select_kernel",
        "demand_kernel",
        "decide_kernel",
        "place_kernel",
    }
    assert [row for row in rows if row["faults"]] == []
    assert all(row["registers"] <= 255 and row["spilled_bytes"] == 0 for row in rows)


def products_of(
    rows: list[dict[str, Any]], *, is_narrow: bool = False, **wanted: Any
) -> list[dict[str, Any]]:
    """Rows of GEMM kernels: the others have no tile of weights."""
    return [
        row
        for row in rows
        if row["tile"][2] > 0
        and (row["tile"][1] < 64) == is_narrow
        and all(row[name] == value for name, value in wanted.items())
    ]


def test_selection_needs_no_more_shared_memory_than_every_device_has(
    rows: list[dict[str, Any]],
) -> None:
    selects = [row for row in rows if row["cells"][0].startswith("select")]
    assert {row["arch"] for row in selects} == {80, 90, 100}
    assert all(row["shared_bytes"] <= MAX_SELECT_SHARED_BYTES for row in selects)


@pytest.mark.parametrize(("arch", "kind"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_products_run_on_the_tensor_cores_of_each_architecture(
    rows: list[dict[str, Any]], arch: int, kind: str
) -> None:
    products = products_of(rows, arch=arch)
    assert products
    assert all(row["products"][kind] > 0 for row in products)


def test_narrow_products_keep_the_older_instruction(rows: list[dict[str, Any]]) -> None:
    narrow = products_of(rows, is_narrow=True)
    assert narrow
    assert all(row["products"]["HMMA"] > 0 for row in narrow)


def test_tiles_are_copied_asynchronously_and_16_bytes_at_a_time(rows: list[dict[str, Any]]) -> None:
    """On sm_90, a tile of fp8 weights is copied by 8 bytes, as it is widened for its product."""
    for row in products_of(rows) + products_of(rows, is_narrow=True):
        copies, loads = row["copies"], row["loads"]
        assert copies["16"] > 0
        assert copies["8"] == 0 or "fp8" in row["cells"][0]
        assert copies["16"] + copies["8"] > 8 * (loads["16"] + loads["8"])


def test_weights_are_copied_by_the_tensor_memory_accelerator_where_tiles_say_so(
    rows: list[dict[str, Any]],
) -> None:
    for row in products_of(rows) + products_of(rows, is_narrow=True):
        assert (row["tma_copies"] > 0) == ("tma" in row["cells"][0])


def test_down_weights_are_fetched_before_the_wait_where_tiles_say_so(
    rows: list[dict[str, Any]],
) -> None:
    for row in rows:
        is_wanted = "prefetch" in row["cells"][0] and row["kernel"] == "down_concat_kernel"
        assert (row["prefetches"] > 0) == is_wanted


def test_kernels_wait_for_the_launch_before_where_they_overlap_it(
    rows: list[dict[str, Any]],
) -> None:
    assert all(row["waits"] == (row["arch"] >= 90) for row in rows)


def test_the_listing_is_of_these_kernels() -> None:
    done = run("--is-current")
    message = "run python -m benchmarks.gpu.resources"
    assert done.returncode == 0, f"{message}\n{done.stderr[-2000:]}"


def test_a_listing_stays_current_when_only_words_change() -> None:
    source = '"""Module."""\nBLOCK = 8  # rows\n\ndef load(x):\n    """Load."""\n    return x\n'
    reworded = '"""A module."""\nBLOCK = 8\n\ndef load(x):\n    """A load."""\n    return x\n'
    assert code_of(source) == code_of(reworded)
    assert code_of(source) != code_of(source.replace("8", "16"))
