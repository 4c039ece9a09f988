"""What a lane runs: packs and calibrations on one device. Built inside the lane, torch is imported there only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from mup_tune.engine.work import Calibrate, Calibration, Outcome, OutOfMemoryError, Progress, Report, Runner, Work
from mup_tune.trial import Pack

if TYPE_CHECKING:
    from mup_tune.data.corpus import Corpus
    from mup_tune.train.trainer import Device

CALIBRATION_STEPS = 3


@dataclass(frozen=True)
class TrainingRunner:
    """Picklable factory of a lane's runner.

    A lane has one thread: several lanes then fill a CPU better than one lane's threads do, and inline and Ray give
    bitwise the same losses for the same pack.
    """

    corpus: str

    def __call__(self, lane: str) -> Runner:
        return _Lane(lane, self.corpus)


class _Lane:
    def __init__(self, lane: str, corpus: str) -> None:
        import torch

        from mup_tune.data.corpus import open_corpus

        torch.set_num_threads(1)
        # Subnormal second moments of unseen tokens cost more than they tell.
        torch.set_flush_denormal(True)
        self.lane = lane
        self.corpus: Corpus = open_corpus(corpus)
        self.device = measure_device("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, work: Work, report: Report) -> Outcome:
        import torch

        from mup_tune.train.trainer import train_pack

        if isinstance(work, Calibrate):
            return calibrate(work, self.corpus, self.device)
        pack: Pack = work
        try:
            return train_pack(
                pack, self.corpus, self.device, lambda done, speed: report(Progress(self.lane, pack.id, done, speed))
            )
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(str(error).splitlines()[0]) from None


def measure_device(name: str) -> Device:
    """The device with its matmul peak, measured in the dtype that trains (fp32).

    The fastest of ten products: other lanes slow some of them down, and a low peak would flatter every MFU.
    """
    import torch

    from mup_tune.train.trainer import Device

    size = 4096 if name == "cuda" else 512
    a = torch.randn(size, size, device=name)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        a @ a
        if name == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return Device(name, torch.get_num_threads(), 2 * size**3 / min(times))


def calibrate(work: Calibrate, corpus: Corpus, device: Device) -> Calibration:
    """Tokens/s by population size, median of a few steps each; stops where larger clearly stops paying."""
    import torch

    from mup_tune.data.batches import Batches
    from mup_tune.train.trainer import PackTraining

    budget = work.trial.budget
    batch = Batches(corpus, "train", budget.seq_len, budget.rows, budget.data_seed).batch(0)
    speeds: dict[int, float] = {}
    for size in work.sizes:
        try:
            training = PackTraining((work.trial,) * size, corpus, device)
            times = []
            for _ in range(CALIBRATION_STEPS + 1):
                started = time.perf_counter()
                training.step(0, batch)
                if device.name == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
        except torch.OutOfMemoryError:
            break
        speeds[size] = size * budget.batch_tokens / median(times[1:])
        if speeds[size] < 0.8 * max(speeds.values()):
            break
    if not speeds:
        raise OutOfMemoryError("one member does not fit on the device")
    return Calibration(speeds, device.name)
