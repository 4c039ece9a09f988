"""A source with stages and a runner that does what a pack's stage name tells it to. No torch, no NumPy."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mup_tune.engine.events import Event, Finished, Lanes, Lost, Started
from mup_tune.engine.packing import halves
from mup_tune.engine.work import (
    Calibrate,
    Calibration,
    Outcome,
    OutOfMemoryError,
    Progress,
    Report,
    RunnerFactory,
    Signal,
    Work,
)
from mup_tune.errors import UserError
from mup_tune.settings import untuned
from mup_tune.shape import Shape
from mup_tune.trial import Budget, Pack, PackResult, Trial, TrialResult

SHAPE = Shape(
    name="tiny", d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ssm=16, ssm_head_dim=8, d_state=8,
    d_ff=32, vocab_size=64,
)  # fmt: skip
BUDGET = Budget(seq_len=8, batch_tokens=16, total_tokens=64, warmup_tokens=0, decay_tokens=16, val_tokens=16)
SETTINGS = untuned(SHAPE)


def trials(n: int, first_seed: int = 0) -> tuple[Trial, ...]:
    return tuple(Trial(shape=SHAPE, budget=BUDGET, settings=SETTINGS, seed=first_seed + i) for i in range(n))


def packs(stage: str, n: int, size: int = 1, first_seed: int = 0) -> list[Pack]:
    return [Pack.of(stage, trials(size, first_seed + 1000 * index)) for index in range(n)]


def wait_for(file: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Until ``file`` is there; a minute without it is an error."""
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, f"{file.name} never came"
        meanwhile()
        time.sleep(0.005)


@dataclass
class Scripted:
    """A lane's runner; ``folder`` is where its deeds outlive its process."""

    folder: Path
    lane: str

    def __call__(self, work: Work, report: Report) -> Outcome:
        if isinstance(work, Calibrate):
            return Calibration({size: float(size) for size in work.sizes}, self.lane)
        runs, words = self._count(work), 0

        def talk() -> None:
            nonlocal words
            words += 1
            report(Progress(self.lane, work.id, words / 20_000, 1.0))

        match work.stage.split()[0]:
            case "slow":
                time.sleep(float(work.stage.split()[1]))
            case "talk":
                wait_for(self.folder / "heard", meanwhile=talk)
            case "hold":
                wait_for(self.folder / "go")
            case "die" if runs == 1:
                time.sleep(0.05)
                os._exit(7)
            case "always-die":
                os._exit(7)
            case "raise" if runs == 1:
                raise ZeroDivisionError("the third step went wrong")
            case "wrong":
                raise UserError("the corpus is empty", field="data", fix="Prepare one")
            case "memory" if len(work.trials) > 1:
                raise OutOfMemoryError(f"{len(work.trials)} members do not fit")
            case "interrupt":
                raise KeyboardInterrupt
        rows = tuple(TrialResult(trial, "ok", float(trial.seed), 0.0) for trial in work.trials)
        environment = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MALLOC_TOP_PAD_")}
        return PackResult(work, rows, {"loss": [1.0]}, {"pid": os.getpid(), "words": words, **environment})

    def _count(self, work: Pack) -> int:
        with (self.folder / work.id).open("a") as log:
            log.write("x")
        return (self.folder / work.id).stat().st_size


def factory(folder: Path) -> RunnerFactory:
    return partial(Scripted, folder)


@dataclass
class Staged:
    """Stages of work with a barrier between them. Lost work goes out again, at most ``retries`` times."""

    stages: list[list[Work]]
    retries: int = 3
    handed: list[Work] = field(default_factory=list)
    committed: list[tuple[Work, Outcome]] = field(default_factory=list)
    losses: list[tuple[Work, Exception]] = field(default_factory=list)
    asked_with: set[int] = field(default_factory=set)
    out: list[Work] = field(default_factory=list)

    def next(self, lanes: int) -> Work | Signal:
        self.asked_with.add(lanes)
        while self.stages and not self.stages[0] and not self.out:
            self.stages.pop(0)
        if not self.stages:
            return Signal.DONE
        if not self.stages[0]:
            return Signal.WAIT
        work = self.stages[0].pop(0)
        self.handed.append(work)
        self.out.append(work)
        return work

    def commit(self, work: Work, outcome: Outcome) -> None:
        self.out.remove(work)
        self.committed.append((work, outcome))

    def lost(self, work: Work, error: Exception) -> None:
        self.out.remove(work)
        self.losses.append((work, error))
        if isinstance(error, UserError) or len(self.losses) > self.retries:
            raise error
        again = halves(work) if isinstance(error, OutOfMemoryError) and isinstance(work, Pack) else (work,)
        self.stages[0][:0] = again

    def seeds(self) -> Counter[int]:
        """How often each member was committed, by seed."""
        packs = [work for work, _ in self.committed if isinstance(work, Pack)]
        return Counter(trial.seed for pack in packs for trial in pack.trials)


@dataclass
class Watch:
    """Collects events, with the time of each."""

    events: list[Event] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.times.append(time.perf_counter())

    def at(self, kind: type[Started | Finished | Lost | Lanes | Progress]) -> list[float]:
        return [at for at, event in zip(self.times, self.events, strict=True) if isinstance(event, kind)]

    def of(self, kind: type[Started | Finished | Lost | Lanes | Progress]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]
