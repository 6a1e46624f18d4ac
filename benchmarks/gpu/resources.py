"""Compile every kernel that the host would launch, for three architectures, without a GPU.

    python -m benchmarks.gpu.resources                   check all, write kernels/RESOURCES.md
    python -m benchmarks.gpu.resources --only qwen3-30b:8:90 select:64,128,8:80
    python -m benchmarks.gpu.resources --is-current      is kernels/RESOURCES.md of these kernels?

Exits with 1 where a kernel spills, exceeds the device, cannot hold the planned programs on an
SM, or lacks the machine instructions it was planned for: products on the newest tensor cores that
its tile can use, tiles copied asynchronously and 16 bytes at a time, a wait for the launch before.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.gpu.launches import Launch, SelectVariant, Variant, all_variants, parse
from benchmarks.gpu.machine_code import PRODUCTS, MachineCode
from lynx_kernels.fused_moe import tuning

DEVICES = {80: "A100", 90: "H100, H200", 100: "B200"}
REGISTERS = 64 * 1024  # per SM
RESERVED_SHARED = 1024  # per program, by the driver
PRODUCT_KERNELS = ("gate_up_kernel", "down_concat_kernel", "down_kernel")
MAX_WIDE_LOADS = 3  # of slots and partial sums
MIN_WIDE_ROWS, MIN_WIDE_WARPS = 64, 4  # of a product on more than a warp's tensor core
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv",
}
COLUMNS = (
    "model",
    "M up to, or M,E,K",
    "kernel",
    "BT x BN x BK",
    "warps, stages",
    "programs/SM",
    "registers",
    "shared KB",
    "spilled",
    "products",
    "asynchronous copies",
)
ROOT = Path(__file__).parents[2]
LISTING = ROOT / "kernels" / "RESOURCES.md"


def compile_launch(launch: Launch, arch: int) -> Any:
    kernel, given = launch.kernel, launch.arguments
    signature, constants, options = {}, {}, {}
    for name, value in given.items():
        if name not in kernel.arg_names:
            options[name] = value
    for parameter in kernel.params:
        value = given[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        elif isinstance(value, TensorDescriptor):
            block = ", ".join(map(str, value.block_shape))
            signature[parameter.name] = f"tensordesc<{TYPES[value.base.dtype][1:]}[{block}]>"
        elif parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        else:
            signature[parameter.name] = "i32"
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measure(launch: Launch, arch: int, programs_per_sm: int) -> dict[str, Any]:
    start = time.perf_counter()
    compiled = compile_launch(launch, arch)
    code = MachineCode.of(compiled.asm["cubin"])
    return {
        "kernel": launch.kernel.__name__,
        "warps": launch.arguments.get("num_warps", 4),
        "stages": launch.arguments.get("num_stages", 0),
        "tile": [launch.arguments.get(name, 0) for name in ("BT", "BN", "BK")],
        "programs_per_sm": programs_per_sm,
        "registers": code.registers,
        "spilled_bytes": code.spilled_bytes,
        "shared_bytes": compiled.metadata.shared,
        "products": {name: code.count(name) for name in PRODUCTS},
        "copies": code.by_width("LDGSTS"),
        "loads": code.by_width("LDG"),
        "tma_copies": code.count("UTMALDG"),
        "prefetches": code.count("UBLKPF"),
        "waits": code.count("ACQBULK"),
        "barriers": code.count("BAR"),
        "compile_s": round(time.perf_counter() - start, 2),
    }


def faults(row: dict[str, Any], arch: int) -> Iterator[str]:
    shared_bytes = tuning.SHARED_BYTES[arch]
    programs, threads = row["programs_per_sm"], 32 * row["warps"]
    if row["spilled_bytes"]:
        yield f"{row['spilled_bytes']} bytes of registers spilled"
    if programs * (row["shared_bytes"] + RESERVED_SHARED) > shared_bytes + RESERVED_SHARED:
        yield f"{programs} programs of {row['shared_bytes']} shared bytes do not fit an SM"
    if programs * threads * -(-row["registers"] // 8) * 8 > REGISTERS:
        yield f"{programs} programs of {threads} x {row['registers']} registers do not fit an SM"
    if row["waits"] != (arch >= 90):
        yield f"{row['waits']} waits for the launch before"
    if row["kernel"] in PRODUCT_KERNELS:
        wanted = product_of(row, arch)
        if not row["products"][wanted]:
            yield f"no {wanted} among its products: {row['products']}"
        copies, loads = row["copies"], row["loads"]
        is_fp8 = "fp8" in row["cells"][0]  # copied as they are widened for the product
        if not copies[16] or (copies[8] and not is_fp8):
            yield f"asynchronous copies by width: {copies}"
        if bool(row["tma_copies"]) != ("tma" in row["cells"][0]):
            yield f"{row['tma_copies']} copies by the tensor memory accelerator"
        if loads[16] + loads[8] > MAX_WIDE_LOADS:
            yield f"loads of tiles that are not asynchronous, by width: {loads}"


def product_of(row: dict[str, Any], arch: int) -> str:
    """The instruction that a product of this tile is to run on."""
    if row["tile"][1] < MIN_WIDE_ROWS or row["warps"] < MIN_WIDE_WARPS:
        return "HMMA"
    return {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[arch]


def inspect(variant: Variant | SelectVariant) -> list[dict[str, Any]]:
    rows = []
    for launch in variant.record():
        row = {"arch": variant.arch, "cells": cells_of(variant, launch)}
        programs = variant.programs_per_sm(launch.kernel.__name__)
        row |= measure(launch, variant.arch, programs)
        rows.append(row | {"faults": list(faults(row, variant.arch))})
    return rows


def cells_of(variant: Variant | SelectVariant, launch: Launch) -> list[str]:
    """The cells of the listing that are known without compiling."""
    given = launch.arguments
    tile = [str(given[name]) for name in ("BT", "BN", "BK") if name in given]
    return [
        variant.name,
        variant.size,
        launch.kernel.__name__.removesuffix("_kernel"),
        "x".join(tile) or str(given["BLOCK_M"]),
        f"{given.get('num_warps', 4)}, {given.get('num_stages', '-')}",
    ]


def code_of(source: str) -> str:
    """A module without its comments and docstrings, which change no machine code."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case (
                ast.Module(body=[ast.Expr(ast.Constant(str())), *rest])
                | ast.ClassDef(body=[ast.Expr(ast.Constant(str())), *rest])
                | ast.FunctionDef(body=[ast.Expr(ast.Constant(str())), *rest])
            ):
                node.body = rest
    return ast.unparse(tree)


def fingerprint() -> str:
    """Of everything that the kernels are compiled from: device code, and arguments of launches."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "kernels" / "lynx_kernels").rglob("*.py")):
        text = path.read_text()
        if "@triton.jit" in text:
            found.update(code_of(text).encode())
    for variant in all_variants():
        for launch in variant.record():
            given = {
                name: str(value.dtype) if isinstance(value, torch.Tensor) else value
                for name, value in launch.arguments.items()
            }
            found.update(f"{variant} {launch.kernel.__name__} {given}".encode())
    return found.hexdigest()[:16]


def copies_of(row: dict[str, Any]) -> Iterator[str]:
    if row["tma_copies"]:
        yield f"{row['tma_copies']} UTMALDG"
    yield from (f"{n} LDGSTS {width} B" for width, n in row["copies"].items() if n)


def write_listing(rows: Sequence[dict[str, Any]], path: Path) -> None:
    lines = [
        "# Resources of the kernels",
        "",
        f"Compiled with Triton {triton.__version__}, without a GPU, by",
        "`python -m benchmarks.gpu.resources`. Products and copies count machine instructions, the",
        "unrolled start of the pipeline included. A tile is rows alone for `select`.",
        "",
        *(f"- `{name}`: a product on tensor cores, {what}" for name, what in PRODUCTS.items()),
        "- `LDGSTS`: an asynchronous copy to shared memory, bytes per thread",
        "- `UTMALDG`: a copy by the tensor memory accelerator, a tile of weights (`-tma`)",
        "",
        f"Sources and tiles: {fingerprint()}",
    ]
    for arch, device in DEVICES.items():
        lines += ["", f"## sm_{arch} ({device})", "", f"| {' | '.join(COLUMNS)} |"]
        lines.append("|---" * len(COLUMNS) + "|")
        for row in rows:
            if row["arch"] != arch:
                continue
            products = ", ".join(f"{n} {kind}" for kind, n in row["products"].items() if n)
            cells = (
                *row["cells"],
                row["programs_per_sm"],
                row["registers"],
                f"{row['shared_bytes'] / 1024:.0f}",
                row["spilled_bytes"],
                products or "-",
                ", ".join(copies_of(row)) or "-",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", type=parse, help=parse.__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--is-current", action="store_true", help="compile nothing")
    options = parser.parse_args()
    if options.is_current:
        return int(f"Sources and tiles: {fingerprint()}" not in LISTING.read_text().splitlines())
    rows = []
    with ProcessPoolExecutor(options.workers) as pool:
        for found in pool.map(inspect, options.only or all_variants()):
            for row in found:
                print(json.dumps(row), flush=True)
                rows.append(row)
    if not options.only:
        write_listing(rows, LISTING)
    num_bad = sum(bool(row["faults"]) for row in rows)
    print(f"{len(rows)} kernels, {num_bad} with faults", file=sys.stderr)
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
