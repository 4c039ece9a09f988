"""What a lane runs: packs and calibrations on one device. Only inside the lane is torch imported."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from mup_tune.engine.calibrations import device_kind, remembered
from mup_tune.engine.work import Calibrate, Calibration, Outcome, OutOfMemoryError, Progress, Report, Runner, Work
from mup_tune.errors import UserError
from mup_tune.train.device import Device, measure_device, out_of_memory
from mup_tune.trial import Pack, Trial

if TYPE_CHECKING:
    from mup_tune.data.batches import Batch
    from mup_tune.data.mixture import Data, Mixture
    from mup_tune.train.step import Steps

CALIBRATION_STEPS = 3
WORTH = 0.05  # relative gain in tokens/s below which a doubling of the population is not worth measuring on


@dataclass(frozen=True)
class TrainingRunner:
    """Picklable factory of a lane's runner.

    ``data``: what to train on, by absolute paths. ``hash``: the hash that it must have.

    A lane has one thread: several lanes then fill a CPU better than one lane's threads do, and inline and Ray
    give bitwise the same losses for the same pack.
    """

    data: tuple[Data, ...]
    hash: str

    def __call__(self, lane: str) -> Runner:
        return _LaneRunner(lane, self.data, self.hash)


class _LaneRunner:
    def __init__(self, lane: str, data: tuple[Data, ...], expected: str) -> None:
        import torch

        from mup_tune.data.mixture import open_mixture
        from mup_tune.train.step import Steps

        torch.set_num_threads(1)
        # Subnormal second moments of unseen tokens cost more than they tell.
        torch.set_flush_denormal(True)
        self.lane, self.sources, self.expected = lane, data, expected
        self.data: Mixture = open_mixture(data)
        self.stamps = self.data.stamps()
        _check(self.data, expected)
        self.device = measure_device("cuda" if torch.cuda.is_available() else "cpu")
        self.steps = Steps(self.device.name)

    def __call__(self, work: Work, report: Report) -> Outcome:
        """Of data that is the run's when the work begins and still when it ends."""
        self._look()
        outcome = self._done(work, report)
        self._look()
        return outcome

    def _look(self) -> None:
        """Look at the data again where a file of it was written to or replaced.

        Raises:
            UserError: it is not the run's any more.
        """
        from mup_tune.data.mixture import open_mixture

        if (stamps := self.data.stamps()) != self.stamps:
            self.data = open_mixture(self.sources)
            _check(self.data, self.expected)
            self.stamps = stamps

    def _done(self, work: Work, report: Report) -> Outcome:
        from mup_tune.train.trainer import train_pack

        if isinstance(work, Calibrate):
            return remembered(
                work,
                device_kind(self.device.name),
                lambda: calibrate(
                    work,
                    self.data,
                    self.device,
                    self.steps,
                    lambda size, done: report(Progress(self.lane, "", done, 0.0, size)),
                ),
            )
        pack: Pack = work
        try:
            return train_pack(
                pack,
                self.data,
                self.device,
                lambda done, speed: report(Progress(self.lane, pack.id, done, speed)),
                self.steps,
            )
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemoryError(_words(error)) from None


def _check(data: Mixture, expected: str) -> None:
    """Refuse data that is not the run's: on another host the same path may hold something else."""
    if data.hash != expected:
        found = ", ".join(f"{source.corpus.path} [{source.corpus.hash}]" for source in data.sources)
        raise UserError(
            f"on {platform.node()} this is other data than the run's: {found} hashes to {data.hash}, not to {expected}",
            field="data.corpus",
            fix="Give every host the same corpus under the same path, for example on a shared file system",
        )


def calibrate(
    work: Calibrate,
    data: Mixture,
    device: Device,
    steps: Steps | None = None,
    on_size: Callable[[int, float], None] = lambda size, done: None,
) -> Calibration:
    """Tokens/s by population size, median of a few steps each; stops where larger clearly stops paying.

    Raises:
        OutOfMemoryError: not even one member fits, in the device's words.
    """
    budget = work.trial.budget
    batch = data.batches("train", budget.seq_len, budget.rows, budget.data_seed).batch(0)
    speeds: dict[int, float] = {}
    gib: dict[int, float] = {}
    full = ""
    if device.name != "cpu":
        _peak_gib()  # what came before is no size's
    for place, size in enumerate(work.sizes):
        on_size(size, place / len(work.sizes))
        try:
            seconds = _seconds_a_step((work.trial,) * size, batch, data, device, steps)
        except Exception as error:
            if not out_of_memory(error):
                raise
            full = _words(error)
            break
        speeds[size] = size * budget.batch_tokens / seconds
        if device.name != "cpu":
            gib[size] = _peak_gib()
        smaller = list(speeds.values())[:-2]
        if smaller and max(list(speeds.values())[-2:]) < (1 + WORTH) * max(smaller):
            break  # two doublings in a row brought nothing
    if not speeds:
        raise OutOfMemoryError(full)
    return Calibration(speeds, device.name, gib, bool(full))


def _words(error: Exception) -> str:
    """What a device says of its memory, in a line; a MemoryError may say nothing."""
    return (str(error) or "out of memory").splitlines()[0]


def _peak_gib() -> float:
    """Of the GPU's memory that tensors took since the last call."""
    import torch

    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 3)


def _seconds_a_step(
    trials: tuple[Trial, ...], batch: Batch, data: Mixture, device: Device, steps: Steps | None
) -> float:
    """Of a population that is then dropped; a batch is validated too, for that takes memory of its own."""
    import torch

    from mup_tune.train.trainer import PackTraining
    from mup_tune.train.validation import to_device

    training = PackTraining(trials, data, device, steps)
    times = []
    for _ in range(CALIBRATION_STEPS + 1):
        training.feed(0, [batch])  # not counted: in training it happens beside the steps before
        started = time.perf_counter()
        training.stepper.step()
        if device.name == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    with torch.no_grad():
        training.stepper.nll(*to_device(batch, device.name))
    return median(times[1:])
