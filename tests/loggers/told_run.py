"""A run that goes on pack by pack without training, for tests of what loggers are told of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from mup_tune.findings import Comparison, Finding, State
from mup_tune.findings.confirmation import Confirmation
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.loggers.logger import Committed, Concluded, Logger
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.settings import Settings, untuned
from mup_tune.shape import load_shape
from mup_tune.stats import Interval
from mup_tune.trial import Budget, Pack, PackResult, Trial, TrialResult

SHAPE, WIDE = (load_shape(name).model_copy(update={"note": ""}) for name in ("cpu-32", "cpu-64"))
START = untuned(SHAPE)
TUNED = START.with_values({"elr": 2 * START.elr}, name="tuned")
REFERENCE = "ELR [tuned] / 1"  # no name for a file or a metric
BUDGET = Budget(seq_len=32, batch_tokens=64, total_tokens=192, warmup_tokens=0, decay_tokens=64, val_tokens=64)
TUNING, CONFIRMING = "01-elr", "02-confirm"
GAIN = Interval(0.2, 0.1, 0.3)


def opened(path: Path) -> tuple[RunFolder, Journal]:
    plan = {
        "name": "told",
        "seeds": [0, 1],
        "budget": BUDGET.model_dump(mode="json"),
        "proxy": SHAPE.model_dump(mode="json"),
        "start": START.model_dump(mode="json"),
        "stages": [{"kind": "elr_ewd"}, {"kind": "confirm"}],
    }
    folder = RunFolder.create_or_resume(path, plan, "plan-hash", {"name": "corpus", "hash": "c0ffee"})
    return folder, Journal(folder, writable=True)


def steps(journal: Journal) -> Iterator[str]:
    """The run, a commit or a conclusion at a time, each named."""
    journal.begin_stage(TUNING, "elr_ewd", "Tunes ELR", START)
    yield from _packs(journal, TUNING, [(SHAPE, START, (0, 1)), (SHAPE, TUNED, (0, 1))])
    swept = GlobalAxes(axes=(), eta_lambda_T=1.0, steps=3)
    journal.conclude(TUNING, _finding(TUNING, "elr_ewd", START, swept), State(TUNED, {REFERENCE: START}))
    yield TUNING
    journal.begin_stage(CONFIRMING, "confirm", "Confirms", TUNED)
    yield from _packs(journal, CONFIRMING, [(WIDE, TUNED, (7,)), (SHAPE, TUNED, (8, 9))])
    losses = {8: 2.0, 9: 2.0}
    compared = Comparison(
        candidate="incumbent", reference=REFERENCE, candidate_losses=losses, reference_losses=losses, gain=GAIN
    )
    found = Confirmation(comparisons=(compared,))
    journal.conclude(CONFIRMING, _finding(CONFIRMING, "confirm", TUNED, found), State(TUNED, {REFERENCE: START}))
    journal.set_note("complete", True)
    yield CONFIRMING


def _packs(journal: Journal, stage: str, packs: list[tuple[object, Settings, tuple[int, ...]]]) -> Iterator[str]:
    for shape, settings, seeds in packs:
        pack = Pack.of(stage, tuple(Trial(shape=shape, budget=BUDGET, settings=settings, seed=s) for s in seeds))
        journal.plan_pack(stage, pack, {})
        journal.commit(_result(pack))
        yield pack.id


def loss(trial: Trial) -> float:
    """Seed 1 of the start diverges, the wide Shape is best, and TUNED is better than the start."""
    if trial.settings == START and trial.seed == 1:
        return math.nan
    return 3.0 - 0.5 * (trial.settings == TUNED) - 1.0 * (trial.shape == WIDE) + 0.01 * trial.seed


def _result(pack: Pack) -> PackResult:
    rows = [
        TrialResult(each, "diverged" if math.isnan(loss(each)) else "ok", loss(each), 0.01, "", {"flops": 1.0})
        for each in pack.trials
    ]
    points = [(member, step) for member in range(len(rows)) for step in (1, 2, 3)]
    curves = {
        "member": [float(member) for member, _ in points],
        "step": [float(step) for _, step in points],
        "tokens": [64.0 * step for _, step in points],
        "loss": [loss(pack.trials[member]) + 1.0 / step for member, step in points],
    }
    return PackResult(pack, tuple(rows), curves, {"tokens_per_s": 1000.0, "seconds": 2.0, "mup_tune": "0.1.0 [code]"})


def _finding(stage: str, kind: str, before: Settings, result: GlobalAxes | Confirmation) -> Finding:
    return Finding(stage=stage, kind=kind, title=f"Title of {stage}", before=before, after=TUNED, result=result)


def words(finding: Finding) -> list[str]:
    return [f"{finding.stage} is over."]


class Recorder(Logger):
    """Keeps what it is told; ``fails`` names the method that raises."""

    name = "recorder"
    needs = ()
    fails = ""

    def __init__(self, folder: RunFolder) -> None:
        self._may("open")
        self.told: list[Committed | Concluded] = []
        self.closed: list[bool] = []

    @property
    def where(self) -> str:
        return "in a list"

    def committed(self, pack: Committed) -> None:
        self._may("committed")
        self.told.append(pack)

    def concluded(self, stage: Concluded) -> None:
        self._may("concluded")
        self.told.append(stage)

    def close(self, complete: bool) -> None:
        self._may("close")
        self.closed.append(complete)

    def _may(self, method: str) -> None:
        if self.fails == method:
            raise RuntimeError(f"{method} failed\nwith much to say")


del Logger.known["recorder"]  # no user can ask for it
