"""A compiled kernel's registers and instructions, from its machine code (SASS)."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)")
# An address, a predicate where there is one, the operation with its modifiers.
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")
PRODUCTS = {
    "HMMA": "a warp's",
    "HGMMA": "a warpgroup's, from sm_90",
    "UTCHMMA": "in tensor memory, from sm_100",
}


@dataclass(frozen=True)
class MachineCode:
    registers: int  # per thread
    spilled_bytes: int  # per thread, the stack included
    instructions: Counter[str]

    @classmethod
    def of(cls, cubin: bytes) -> MachineCode:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            usage, listing = (_dump(option, file.name) for option in ("-res-usage", "-sass"))
        found = RESOURCES.search(usage)
        assert found, usage
        registers, stack, local = map(int, found.groups())
        instructions = Counter(INSTRUCTION.findall(listing))
        assert instructions["EXIT"], listing[:1000]
        return cls(registers, stack + local, instructions)

    def count(self, operation: str) -> int:
        """Instructions of an operation, with any modifiers."""
        return sum(n for name, n in self.instructions.items() if name.split(".")[0] == operation)

    def by_width(self, operation: str) -> dict[int, int]:
        """Number of a load's instructions that move 16, 8 and at most 4 bytes per thread."""
        widths = {16: 0, 8: 0, 4: 0}
        for name, n in self.instructions.items():
            head, *modifiers = name.split(".")
            if head == operation:
                widths[16 if "128" in modifiers else 8 if "64" in modifiers else 4] += n
        return widths


def _dump(option: str, path: str) -> str:
    environment = {**os.environ, "PATH": f"{TOOLS}:{os.environ.get('PATH', '')}"}  # of nvdisasm
    command = [str(TOOLS / "cuobjdump"), option, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout + done.stderr
