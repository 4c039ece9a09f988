"""Machine code of a compiled kernel: what it takes, and a fault of ptxas in it. Part of ``compiled.py``."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(.*?);", re.MULTILINE)
WRITES_UNIFORM = re.compile(r"\b(?:R2UR|S2UR|U[A-Z][A-Z0-9.]*) (UR\d+), (.*)")
HIGH_WORD = re.compile(r"UIADD3\.X UR\d+, (UR\d+), -0x7f[0-9a-f]+")


@dataclass(frozen=True)
class Compiled:
    """A kernel for sm_90. ``wrong``: instructions that make a product's address of a wrong register."""

    name: str
    registers: int
    spilled: int
    shared: int
    instructions: int
    wrong: tuple[str, ...]


def looked_at(name: str, cubin: bytes, shared: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (_cuobjdump(option, file.name) for option in ("-res-usage", "-sass"))
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match is not None
    instructions = INSTRUCTION.findall(code)
    wrong = tuple(wrong_addresses(instructions))
    return Compiled(name, int(match[1]), int(match[2]), shared, len(instructions), wrong)


def wrong_addresses(instructions: Iterable[str]) -> list[str]:
    """Those that add a descriptor's high word to a uniform register that does not hold zero."""
    holds: dict[str, str] = {}
    wrong = []
    for each in instructions:
        high = HIGH_WORD.search(each)
        if high and not holds.get(high[1], "").startswith("URZ"):
            wrong.append(each.strip())
        written = WRITES_UNIFORM.search(each)
        if written:
            holds[written[1]] = written[2]
    return wrong


def _cuobjdump(option: str, file: str) -> str:
    """Triton brings it, and nvdisasm, which it calls."""
    spec = importlib.util.find_spec("triton.backends.nvidia")
    assert spec is not None
    assert spec.origin is not None
    tools = Path(spec.origin).parent / "bin"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ.get('PATH', '')}"}
    command = [tools / "cuobjdump", option, file]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
