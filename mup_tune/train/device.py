"""A device that trains: how fast it could be, and whether its memory ran out. Imports no torch by itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Where a lane trains. ``peak_flops``: of matrix products by dtype, in FLOP/s, the denominator of MFU."""

    name: str
    threads: int
    peak_flops: Mapping[str, float]


def measure_device(name: str) -> Device:
    """The device with its matmul peak in every dtype that trains on it.

    The fastest of ten products: other lanes slow some of them down, and a low peak would flatter every MFU.
    """
    import torch

    sizes = {"float32": 4096, "bfloat16": 8192} if name == "cuda" else {"float32": 512}
    peaks = {}
    for dtype, size in sizes.items():
        a = torch.randn(size, size, device=name, dtype=getattr(torch, dtype))
        times = []
        for _ in range(10):
            started = time.perf_counter()
            a @ a
            if name == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        peaks[dtype] = 2 * size**3 / min(times)
    return Device(name, torch.get_num_threads(), peaks)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, a GPU's or the machine's: a library has errors of its own, or chains them."""
    if error is None:
        return False
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    said = ("out of memory", "ALLOC_FAILED", "allocate memory")  # the last by torch on a CPU and by mmap
    return named or any(each in str(error) for each in said) or out_of_memory(error.__cause__ or error.__context__)
