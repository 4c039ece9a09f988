"""What the compiler makes of the GPU step's kernels for an H100 or H200. No GPU is needed.

    python benchmarks/compiled.py                  # gpu-8k-256 as `--scale gpu-short` trains it
    python benchmarks/compiled.py --shape cpu-32 --rows 2 --seq-len 128 --dtype float32 --only _heads

A line a kernel: registers a thread, bytes that spill a thread, shared memory a program, instructions, and
products whose address in shared memory is wrong. The latter is a fault of ptxas (CUDA 12.8, with Triton 3.6):
it adds the constant high word of a product's descriptor to a register that is not zero. Such a kernel reads
out of bounds, and compute-sanitizer agreed wherever it was asked. The exit status is 1 if there is one.

A step is built on the CPU and its launches are compiled instead of made, with the arguments that it would
launch with.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when kernels are defined

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mup_tune.shape import load_shape
from mup_tune.train.fused_step import FusedStep

TARGET = GPUTarget("cuda", 90, 32)
MEMBERS = 2
TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(.*?);", re.MULTILINE)
WRITES_UNIFORM = re.compile(r"\b(?:R2UR|S2UR|U[A-Z][A-Z0-9.]*) (UR\d+), (.*)")
HIGH_WORD = re.compile(r"UIADD3\.X UR\d+, (UR\d+), -0x7f[0-9a-f]+")


class NoGPU:
    """The driver of a GPU that is not there, as far as compilation asks for one."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True)
class Compiled:
    """A kernel for sm_90. ``wrong``: instructions that make a product's address of a wrong register."""

    name: str
    registers: int
    spilled: int
    shared: int
    instructions: int
    wrong: tuple[str, ...]


def compiled_launches(launches: Callable[[], object], only: str = "") -> list[Any]:
    """The kernels that ``launches`` would launch, each once, in order; ``only``: a pattern of their names."""
    found: dict[str, Any] = {}
    launch = JITFunction.run

    def compile_only(kernel: Any, *args: Any, **kwargs: Any) -> None:
        if re.search(only, kernel.__name__):
            made = launch(kernel, *args, **{**kwargs, "warmup": True})
            found.setdefault(made.hash, made)

    triton.runtime.driver.set_active(NoGPU())  # type: ignore[arg-type]
    JITFunction.run = compile_only  # type: ignore[method-assign,assignment]
    try:
        launches()
    finally:
        JITFunction.run = launch  # type: ignore[method-assign]
    return list(found.values())


def looked_at(kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (_cuobjdump(option, file.name) for option in ("-res-usage", "-sass"))
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match is not None
    instructions = INSTRUCTION.findall(code)
    wrong = tuple(wrong_addresses(instructions))
    return Compiled(kernel.name, int(match[1]), int(match[2]), kernel.metadata.shared, len(instructions), wrong)


def _cuobjdump(option: str, file: str) -> str:
    tools = {**os.environ, "PATH": f"{TOOLS}:{os.environ.get('PATH', '')}"}  # it calls nvdisasm
    done = subprocess.run([TOOLS / "cuobjdump", option, file], capture_output=True, text=True, env=tools, check=True)
    return done.stdout


def wrong_addresses(instructions: list[str]) -> list[str]:
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


def kernels_of(shape: str, rows: int, seq_len: int, dtype: str, only: str = "") -> list[Compiled]:
    """The kernels of a training step of this Shape; ``only``: a pattern of their names."""
    step = FusedStep(load_shape(shape), MEMBERS, rows, seq_len, "cpu", getattr(torch, dtype), graph=False)
    return [looked_at(each) for each in compiled_launches(step._run, only)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="gpu-8k-256", help="a shipped Shape or a YAML file")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--only", default="", metavar="PATTERN", help="kernels whose names match")
    options = parser.parse_args()
    found = kernels_of(options.shape, options.rows, options.seq_len, options.dtype, options.only)
    print(f"{'kernel':28} {'registers':>9} {'spilled':>7} {'shared':>7} {'instructions':>12}  wrong addresses")
    for each in found:
        print(
            f"{each.name:28} {each.registers:9d} {each.spilled:7d} {each.shared:7d} {each.instructions:12d}  "
            f"{'; '.join(each.wrong) or 'none'}"
        )
    sys.exit(any(each.wrong for each in found))


if __name__ == "__main__":
    main()
