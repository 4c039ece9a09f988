"""The protocol between a run and whoever trains: work goes out, outcomes come back, the source decides.

A source is pure bookkeeping (it knows no Ray and no torch); a driver (:mod:`~mup_tune.engine.inline`,
:mod:`~mup_tune.engine.ray`) owns lanes, one per device; a runner is what a lane calls, built once per lane so
that compiled steps and contexts stay warm from pack to pack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from mup_tune.trial import Pack, PackResult, Trial


@dataclass(frozen=True)
class Calibrate:
    """Measure tokens/s of populations of ``sizes`` members like ``trial``, a few steps each."""

    trial: Trial
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """``tokens_per_s`` over all members, by population size; sizes that ran out of memory are left out.

    ``gib``: the peak of a GPU's memory that each size took, in GiB, nothing on a CPU. ``full``: whether a
    size ran out of memory.
    """

    tokens_per_s: dict[int, float]
    device: str
    gib: dict[int, float] = field(default_factory=dict)
    full: bool = False


class Signal(Enum):
    WAIT = "wait"  # everything there is to do is out; ask again after the next outcome
    DONE = "done"


Work = Calibrate | Pack
Outcome = Calibration | PackResult


@dataclass(frozen=True)
class Progress:
    """How far a lane is in a pack, or in a calibration (no ``pack_id``) that measures ``size`` members."""

    lane: str
    pack_id: str
    fraction: float
    tokens_per_s: float
    size: int = 0


Report = Callable[[Progress], None]


class OutOfMemoryError(Exception):
    """A pack does not fit on its device. The source splits it."""


class PackSource(Protocol):
    """What a driver drives. Methods are called from one thread."""

    def next(self, lanes: int) -> Work | Signal:
        """The next piece of work; ``lanes`` is how many devices share it."""

    def commit(self, work: Work, outcome: Outcome) -> None:
        """Take an outcome. A second outcome for the same work is ignored."""

    def lost(self, work: Work, error: Exception) -> None:
        """A lane failed or vanished with this work: hand it out again, split, or raise to end the run."""


class Runner(Protocol):
    """What a lane calls; built once per lane by a picklable factory."""

    def __call__(self, work: Work, report: Report) -> Outcome: ...


RunnerFactory = Callable[[str], Runner]  # the argument is the lane's name
