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
    """Whether the device's memory ran out: drivers and libraries raise errors of their own, or chain them."""
    if error is None:
        return False
    text = str(error)
    known = type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "ALLOC_FAILED" in text
    return known or out_of_memory(error.__cause__ or error.__context__)
