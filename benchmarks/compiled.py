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
import sys
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when kernels are defined

import torch
import triton
from machine_code import Compiled, looked_at
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mup_tune.shape import load_shape
from mup_tune.train.fused_step import FusedStep

TARGET = GPUTarget("cuda", 90, 32)
MEMBERS = 2


class NoGPU:
    """The driver of a GPU that is not there, as far as compilation asks for one."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


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


def kernels_of(shape: str, rows: int, seq_len: int, dtype: str, only: str = "") -> list[Compiled]:
    """The kernels of a training step of this Shape; ``only``: a pattern of their names."""
    step = FusedStep(load_shape(shape), MEMBERS, rows, seq_len, "cpu", getattr(torch, dtype), graph=False)
    return [
        looked_at(each.name, each.asm["cubin"], each.metadata.shared) for each in compiled_launches(step._run, only)
    ]


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
