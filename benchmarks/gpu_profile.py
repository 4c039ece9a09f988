"""Where a fused step's time goes, kernel by kernel, with the floors beside it. Part of ``gpu.py``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpu_floor import PARTS, Machine, Operation, floor
from torch.autograd import DeviceType

PRODUCTS = {"aten::bmm": (0, 1), "aten::mm": (0, 1), "aten::baddbmm": (1, 2), "aten::addmm": (1, 2)}
NAME_WIDTH = 64


@dataclass
class Line:
    """Calls and GPU time of one kernel name, or of one product's sizes."""

    calls: int = 0
    us: float = 0.0

    def add(self, us: float, calls: int = 1) -> None:
        self.calls += calls
        self.us += us


def lines(events: Iterable[Any]) -> dict[str, Line]:
    """Kernels of a profile by name, matrix products by their sizes; the longest first."""
    found: defaultdict[str, Line] = defaultdict(Line)
    products: defaultdict[str, Line] = defaultdict(Line)
    for event in events:
        if event.device_type == DeviceType.CUDA:
            found[event.name].add(event.time_range.elapsed_us())
        elif event.name in PRODUCTS:
            for kernel in event.kernels:
                products[_sizes(event.name, event.input_shapes)].add(kernel.duration)
                found[kernel.name].add(-kernel.duration, -1)
    kept = {name: line for name, line in found.items() if line.calls > 0} | products
    return dict(sorted(kept.items(), key=lambda item: -item[1].us))


def _sizes(name: str, shapes: Sequence[Sequence[int]]) -> str:
    left, right = (shapes[index] for index in PRODUCTS[name])
    return f"{name.removeprefix('aten::')} {list(left)} × {list(right)}"


def profiled(step: Callable[[], None]) -> dict[str, Line]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        step()
        torch.cuda.synchronize()
    return lines(profile.events())


def profile_table(found: dict[str, Line], step_s: float) -> str:
    """Args: step_s: how long a graphed step takes from start to end."""
    total = sum(line.us for line in found.values())
    rows = [f"{'kernel':{NAME_WIDTH}} {'calls':>6} {'µs':>10} {'µs each':>9} {'share':>6}"]
    for name, line in found.items():
        share = line.us / total
        rows.append(
            f"{name[:NAME_WIDTH]:{NAME_WIDTH}} {line.calls:6d} {line.us:10.0f} {line.us / line.calls:9.1f} {share:6.1%}"
        )
    rows.append(f"kernels {total / 1e3:.3f} ms; a graphed step takes {1e3 * step_s:.3f} ms")
    return "\n".join(rows)


def floor_table(operations: Sequence[Operation], machine: Machine, members: int) -> str:
    """What every operation would take at the measured peaks, all layers and members together."""
    rows = [f"{'floor':{NAME_WIDTH}} {'GFLOP':>9} {'MB':>9} {'µs':>9}  bound by"]
    for each in sorted(operations, key=lambda each: -each.seconds(machine)):
        bound = "arithmetic" if each.flops / machine.flops > each.bytes / machine.bandwidth else "bandwidth"
        us = 1e6 * members * each.seconds(machine)
        flops, moved = members * each.flops / 1e9, members * each.bytes / 1e6
        rows.append(f"{each.part + ': ' + each.name:{NAME_WIDTH}} {flops:9.1f} {moved:9.1f} {us:9.1f}  {bound}")
    least = floor(operations, machine, members)
    parts = ", ".join(f"{part} {1e3 * least.parts[part]:.3f}" for part in PARTS)
    rows.append(f"floor {1e3 * least.total:.3f} ms ({parts}); kernel by kernel {1e3 * least.kernels:.3f} ms")
    return "\n".join(rows)
