"""Sides of a benchmark timed in turn on one device: alone first, then those that fit together."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import torch
from gpu_floor import Machine

from mup_tune.shape import Shape

BASELINE, EAGER, GRAPHED = "transformers", "ours, eager", "ours, graph"
VISIT_S, MOST_STEPS = 0.4, 2000
FILL = 0.93  # of the device's memory that sides may take


class Trained(Protocol):
    def step(self) -> None: ...

    def loss(self) -> float: ...

    @property
    def remarks(self) -> list[str]: ...


@dataclass
class Side:
    """One row of the table. ``seconds``: of a step, a value a round."""

    name: str
    members: int
    build: Callable[[], Trained]
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    reserved_bytes: int = 0
    loss: float = math.nan
    note: str = ""
    too_large: bool = False
    remarks: list[str] = field(default_factory=list)

    @property
    def step_s(self) -> float:
        return median(self.seconds)


@dataclass
class Cell:
    """A size and a batch; its sides are timed in turn."""

    size: str
    shape: Shape
    tokens: int
    seq_len: int
    sides: list[Side]

    def speed(self, side: Side) -> float:
        """Tokens/s over all members."""
        return side.members * self.tokens / side.step_s

    def timed(self, name: str = "") -> list[Side]:
        return [side for side in self.sides if side.seconds and name in ("", side.name)]

    def best(self) -> Side | None:
        return max(self.timed(GRAPHED), key=self.speed, default=None)


class Device:
    """The device by name; on a CPU, where only the benchmark itself is tested, memory counts as 0."""

    def __init__(self, name: str) -> None:
        self.name, self.is_cuda = name, name.startswith("cuda")
        self.memory = torch.cuda.mem_get_info()[1] if self.is_cuda else 0

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def empty(self) -> None:
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> tuple[int, int]:
        """Most bytes allocated and reserved since :meth:`empty`."""
        return (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if self.is_cuda else (0, 0)

    def held(self) -> tuple[int, int]:
        """Bytes allocated and reserved now."""
        return (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if self.is_cuda else (0, 0)

    def machine(self) -> Machine:
        """The best of many short trials each: an 8192³ product of random bf16 matrices, and a copy of 4 GiB.

        Short, because a second of products already runs into the power limit, and the lower rate would
        flatter MFUs.
        """
        width, size = (8192, 2**30) if self.is_cuda else (256, 2**20)
        a, b = (torch.randn(width, width, device=self.name, dtype=torch.bfloat16) for _ in range(2))
        product_s = min(run(lambda: a @ b, 5, self) for _ in range(12))
        source = torch.randn(size, device=self.name)
        target = torch.empty_like(source)
        copy_s = min(run(lambda: target.copy_(source), 5, self) for _ in range(12))
        return Machine(2 * width**3 / product_s, 2 * 4 * size / copy_s)


def seconds_a_step(step: Callable[[], Any], device: Device) -> float:
    """Wall time of a step among enough of them for ``VISIT_S``, after a warm-up."""
    run(step, 1, device)
    return run(step, min(MOST_STEPS, max(2, math.ceil(VISIT_S / run(step, 1, device)))), device)


def run(step: Callable[[], Any], steps: int, device: Device) -> float:
    """Wall time of one of ``steps`` that are queued without waiting."""
    device.wait()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    device.wait()
    return (time.perf_counter() - started) / steps


def run_cell(each: Cell, device: Device, rounds: int, until: float) -> None:
    """All sides of ``each``. After ``until`` (``perf_counter``) only the first side's first round starts."""
    for side in each.sides:
        if time.perf_counter() > until and each.timed():
            side.note = "no time left"
        elif _too_large(side, each, device):
            side.note, side.too_large = "too large", True
        else:
            _first(side, device)
    residents = _residents(each.timed(), device)
    held: dict[int, Trained] = {}
    for _ in range(rounds - 1):
        for side in each.timed():
            if time.perf_counter() < until:
                _again(side, device, held, keep=side in residents)
    held.clear()
    device.empty()


def _too_large(side: Side, each: Cell, device: Device) -> bool:
    """Whether a population would not fit, from smaller ones: memory grows linearly with members."""
    smaller = [other for other in each.sides if other.name == side.name and other.members < side.members]
    if any(other.too_large for other in smaller):
        return True
    points = [(0, 0), *((other.members, other.reserved_bytes) for other in smaller if other.seconds)]
    if len(points) == 1 or not device.memory:
        return False
    (members0, bytes0), (members1, bytes1) = points[-2:]
    a_member = (bytes1 - bytes0) / (members1 - members0)
    return bytes1 + a_member * (side.members - members1) > FILL * device.memory


def _again(side: Side, device: Device, held: dict[int, Trained], keep: bool) -> None:
    """One more round of a side, built anew unless it is ``held``."""
    training: Trained | None = None
    try:
        training = held.pop(id(side), None) or side.build()
        side.seconds.append(seconds_a_step(training.step, device))
        if keep:
            held[id(side)] = training
    except Exception as error:
        traceback.print_exc()
        side.note = f"a later round failed: {type(error).__name__}"
    training = None
    if not keep:
        device.empty()


def _first(side: Side, device: Device) -> None:
    """A side's first round, alone on the device: speed, memory, and whether it trains at all."""
    device.empty()
    training: Trained | None = None
    try:
        training = side.build()
        side.seconds.append(seconds_a_step(training.step, device))
        side.loss = training.loss()
        if not math.isfinite(side.loss):
            side.note = "a loss is not finite"
        side.remarks = training.remarks
    except torch.OutOfMemoryError:
        side.note, side.too_large = "out of memory", True
    except Exception as error:
        traceback.print_exc()
        side.note = f"failed: {failure(error)}"
    side.peak_bytes, side.reserved_bytes = device.peaks()
    training = None
    device.empty()


def failure(error: Exception) -> str:
    """Its type and the beginning of its first line, for a table's note."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:60]}"


def _residents(sides: Sequence[Side], device: Device) -> list[Side]:
    """The smallest sides that fit on the device beside the largest of the rest."""
    ordered = sorted(sides, key=lambda side: side.reserved_bytes)
    for count in range(len(ordered), 0, -1):
        kept, rest = ordered[:count], ordered[count:]
        needs = sum(side.reserved_bytes for side in kept) + (rest[-1].reserved_bytes if rest else 0)
        if needs <= FILL * device.memory or not device.memory:
            return kept
    return []
