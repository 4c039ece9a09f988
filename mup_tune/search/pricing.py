"""What a plan takes in time: its rehearsed waves packed and scheduled on devices of a known speed.

A wave is what a stage lets go between two barriers. Its trials become packs as the sweep would cut them, and
the dearest pack goes first to the device that is free first. The next wave begins when the last pack ends.
Start-up, calibration and commits are not counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mup_tune.engine.calibrations import speed_at
from mup_tune.engine.packing import pack_sizes, population_size
from mup_tune.engine.work import Calibration
from mup_tune.search.rehearsal import Rehearsal, Wave
from mup_tune.shape import Shape
from mup_tune.trial import Budget

VALIDATION = 1 / 3  # of a training token's cost: a forward pass, of which training does three times as much
HOUR = 3600.0

Speeds = Callable[[Shape, Budget], Calibration | None]


@dataclass(frozen=True)
class Price:
    """A stage, or all of them, on ``gpus`` devices, if nothing surprises.

    ``hours`` are of the clock, ``gpu_hours`` are ``gpus`` times that. ``utilisation`` is the share of them in
    which packs train.
    """

    gpus: int
    packs: int
    hours: float
    utilisation: float

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.hours


def flat(tokens_per_s: float, shape: Shape, seq_len: int) -> Speeds:
    """A stated speed of ``shape`` as that of every population; other Shapes by their FLOPs per token.

    A pack then is one trial, since none is slower alone.
    """
    rate = tokens_per_s * shape.flops_per_token(seq_len)

    def speeds(other: Shape, budget: Budget) -> Calibration:
        return Calibration({1: rate / other.flops_per_token(budget.seq_len)}, "as stated")

    return speeds


def unknown_speeds(rehearsal: Sequence[Rehearsal], speeds: Speeds) -> list[Shape]:
    """The Shapes that some wave trains and nobody knows the speed of."""
    asked = dict.fromkeys(each for stage in rehearsal for wave in stage.waves for each in wave.trials)
    return list(dict.fromkeys(shape for shape, budget in asked if speeds(shape, budget) is None))


def price(waves: Sequence[Wave], speeds: Speeds, gpus: int) -> Price:
    """The waves one after another.

    Raises:
        ValueError: a speed is not known.
    """
    packs, seconds, busy = 0, 0.0, 0.0
    for wave in waves:
        taken = sorted(_packs(wave, speeds, gpus), reverse=True)
        packs, busy, seconds = packs + len(taken), busy + sum(taken), seconds + _makespan(taken, gpus)
    return Price(gpus, packs, seconds / HOUR, busy / (gpus * seconds) if seconds else 0.0)


def _packs(wave: Wave, speeds: Speeds, gpus: int) -> list[float]:
    """Seconds of every pack."""
    known = {kind: _known(speeds, *kind) for kind in wave.trials}
    largest = {kind: population_size(known[kind], trials, gpus) for kind, trials in wave.trials.items()}
    if wave.equal_packs:
        largest = dict.fromkeys(largest, min(largest.values()))
    found = []
    for (shape, budget), trials in wave.trials.items():
        calibration = known[shape, budget]
        tokens = budget.steps * budget.batch_tokens + VALIDATION * budget.val_tokens * (1 + len(budget.val_lengths))
        sizes = pack_sizes(trials, largest[shape, budget])
        found += [members * tokens / speed_at(calibration, members) for members in sizes]
    return found


def _known(speeds: Speeds, shape: Shape, budget: Budget) -> Calibration:
    calibration = speeds(shape, budget)
    if calibration is None:
        raise ValueError(f"the speed of {shape.name} is not known")
    return calibration


def _makespan(seconds: Sequence[float], devices: int) -> float:
    """When the last of these ends, each given to the device that is free first."""
    free = [0.0] * min(devices, len(seconds))
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free, default=0.0)
