"""Trials, packs and results without training, for tests of what a run is on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mup_tune.findings import AxisFinding, Finding, Point
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.settings import untuned
from mup_tune.shape import load_shape
from mup_tune.stats import Interval, Parabola
from mup_tune.trial import Budget, Pack, PackResult, Trial, TrialResult

STAGE = "01-sweep"
SHAPE = load_shape("cpu-32").model_copy(update={"note": ""})  # a note is no part of a trial
START = untuned(SHAPE)
BUDGET = Budget(
    seq_len=32, batch_tokens=64, total_tokens=640, warmup_tokens=64, decay_tokens=64, val_tokens=64, lr_decay_to=0.1
)
PLAN: dict[str, Any] = {
    "name": "test",
    "seeds": [0, 1],
    "budget": BUDGET.model_dump(mode="json"),
    "proxy": SHAPE.model_dump(mode="json"),
    "start": START.model_dump(mode="json"),
    "stages": [{"kind": "sweep", "axes": ["elr"], "grid": [-1.0, 0.0, 1.0]}, {"kind": "confirm", "seeds": 3}],
}
CORPUS = {"name": "corpus", "hash": "c0ffee"}


def folder(path: Path) -> RunFolder:
    return RunFolder.create_or_resume(path, PLAN, "plan-hash", CORPUS)


def begun(run: RunFolder) -> Journal:
    journal = Journal(run, writable=True)
    journal.begin_stage(STAGE, "sweep", "A sweep", START)
    return journal


def trial(offset: float, seed: int = 0, axis: str = "mlp_down") -> Trial:
    settings = START.scaled({axis: 2.0**offset, "elr": 1.1})
    return Trial(shape=SHAPE, budget=BUDGET, settings=settings, seed=seed)


def pack(offsets: Iterable[float], stage: str = STAGE, seed: int = 0) -> Pack:
    return Pack.of(stage, tuple(trial(offset, seed) for offset in offsets))


def result(of: Pack, attempt: float = 0.0, diverged: Iterable[int] = ()) -> PackResult:
    """Losses and curves carry the attempt, so that a test can tell whose they are."""
    rows, lost = [], set(diverged)
    for index, each in enumerate(of.trials):
        metrics = {"bits_per_byte": 2.0 + index, "grad_norm": math.nan if index in lost else 0.5}
        if index in lost:
            rows.append(TrialResult(each, "diverged", math.nan, math.nan, "loss is NaN at step 3", metrics))
        else:
            rows.append(TrialResult(each, "ok", 2.0 + index / 7 + attempt, 0.01, "", metrics))
    members = [float(index) for index in range(len(of.trials))]
    curves = {
        "member": [member for _ in range(3) for member in members],
        "step": [float(step) for step in (1, 5, 10) for _ in members],
        "tokens": [float(64 * step) for step in (1, 5, 10) for _ in members],
        "loss": [math.nan if int(m) in lost and step else 3.0 + m + attempt for step in range(3) for m in members],
    }
    record = {"backend": "torch", "threads": 1, "tokens_per_s": 1234.5, "mfu": math.nan, "seconds": 2.0}
    return PackResult(of, tuple(rows), curves, record)


def finding(stage: str = STAGE) -> Finding:
    points = tuple(Point(offset=x, value=2.0**x, losses={0: 2.0 + x * x, 1: None}) for x in (-1.0, 0.0, 1.0))
    interval = Interval(value=0.1, low=-0.2, high=0.4)
    axis = AxisFinding(
        axis="mlp_down",
        before=1.0,
        after=1.25,
        points=points,
        fit=Parabola(optimum=interval, floor=2.0, curvature=interval, points_used=3, edge=False),
        p_value=0.03,
        decision="moved",
    )
    after = START.with_values({"mlp_down": 1.25}, name="after")
    result = GlobalAxes(axes=(axis,), eta_lambda_T=1.5, steps=10)
    return Finding(stage=stage, kind="sweep", title="A sweep", before=START, after=after, result=result)
