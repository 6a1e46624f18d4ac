"""Compile the launches of `select_triton` for GPUs that are not here, and print their resources.

    python tests/kernels/compile_select.py [M,E,K ...]

One line of JSON per kernel. Launches are recorded on meta tensors by calling the host function, so
what is compiled is what runs. Run in a process of its own, where TRITON_INTERPRET is not set.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from lynx_kernels import POLICIES
from lynx_kernels import select_triton as host

ARCHS = (80, 90, 100)
SLOTS = ((8, 128, 8), (64, 128, 8), (256, 512, 8), (16, 64, 4))
KERNELS = ("select_kernel", "demand_kernel", "decide_kernel", "place_kernel")
TYPES = {
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Recorder:
    def __init__(self, kernel: Any, launches: list[tuple[Any, dict[str, Any]]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **given: self.launches.append((self.kernel, given))


def record(
    num_rows: int, num_experts: int, top_k: int, *, policy: str = "lynx", has_pdl: bool = False
) -> list[tuple[Any, dict[str, Any]]]:
    """Kernels and their arguments, as the host would launch them."""

    def meta(*sizes: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    launches: list[tuple[Any, dict[str, Any]]] = []
    with mock.patch.multiple(
        host, **{name: Recorder(getattr(host, name), launches) for name in KERNELS}
    ):
        host.select_triton(
            meta(num_rows, num_experts, dtype=torch.float32),
            meta(num_rows, top_k, dtype=torch.int32),
            meta(num_rows, top_k, dtype=torch.float32),
            meta(num_rows, dtype=torch.uint8),
            budget=meta(dtype=torch.int32),
            floor=meta(dtype=torch.int32),
            demand=meta(dtype=torch.float32),
            policy=POLICIES[policy],
            correction_bias=None,
            schedule=True,
            has_pdl=has_pdl,
        )
    return launches


def compile_launch(kernel: Any, given: dict[str, Any], arch: int) -> Any:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for parameter in kernel.params:
        value = given[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
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
    options = {name: value for name, value in given.items() if name not in signature}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(ptx: str, arch: int) -> dict[str, int]:
    """Registers and spills as ptxas reports them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        found = re.search(r"\.target (\w+)", ptx)
        assert found
        done = subprocess.run(
            [get_ptxas(arch).path, "-v", f"--gpu-name={found.group(1)}", path, "-o", "/dev/null"],
            capture_output=True,
            text=True,
            check=True,
        )
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    assert spills, done.stderr
    assert registers, done.stderr
    return {"registers": int(registers[1]), "spilled_bytes": int(spills[1]) + int(spills[2])}


def inspect(num_rows: int, num_experts: int, top_k: int, arch: int) -> list[dict[str, Any]]:
    rows = []
    for kernel, given in record(num_rows, num_experts, top_k, has_pdl=arch >= 90):
        compiled = compile_launch(kernel, given, arch)
        ptx = compiled.asm["ptx"]
        rows.append(
            {
                "arch": arch,
                "slot": [num_rows, num_experts, top_k],
                "kernel": kernel.__name__,
                "programs": given.get("NUM_PROGRAMS", -(-num_rows // given["BLOCK_M"])),
                "rows": given["BLOCK_M"],
                "warps": given["num_warps"],
                "shared_bytes": compiled.metadata.shared,
                "barriers": len(re.findall(r"bar\.sync", ptx)),
                "waits": len(re.findall(r"griddepcontrol\.wait", ptx)),
                **resources(ptx, arch),
            }
        )
    return rows


def main() -> None:
    slots = [tuple(map(int, text.split(","))) for text in sys.argv[1:]] or SLOTS
    for arch in ARCHS:
        for num_rows, num_experts, top_k in slots:
            for row in inspect(num_rows, num_experts, top_k, arch):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
