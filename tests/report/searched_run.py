"""A made-up run that searched: trials over a few axes, some of them diverged, and a stage of longer ones."""

from __future__ import annotations

from math import log2, nan
from pathlib import Path

import numpy as np
from synthetic_run import BUDGET, COMPARISONS, SHAPE, plan, synthetic_findings

from mup_tune.findings import State
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.settings import Settings, untuned
from mup_tune.trial import Budget, Pack, PackResult, Trial, TrialResult

SPREAD = {"elr": 1.0, "embedding": 1.5, "qkv.elr": 0.7}  # log2, on either side of the start
CURVES = {name: [1.0] for name in ("member", "step", "tokens", "loss", "grad_norm", "clipped", "eta")}


def searched_run(
    path: Path, name: str = "searched", trials: int = 60, reason: str = "loss is not finite at step 7"
) -> Path:
    """Stage ``01-elr`` trained ``trials`` trials, ``02-multipliers`` six of them for twice as long.

    ``name`` is the plan's and that of all Settings. Every seventh trial diverged for ``reason``.
    """
    found = synthetic_findings((0, 1, 2), COMPARISONS)
    random, corpus = np.random.default_rng(0), {"name": "python-stdlib", "hash": "fedcba9876543210"}
    with RunFolder.create_or_resume(path, plan(name), "0123456789abcdef", corpus) as folder:
        journal = Journal(folder, writable=True)
        for each in found:
            journal.begin_stage(each.stage, each.kind, each.title, each.before)
        places = [_moved(random.uniform(-1, 1, len(SPREAD)), name) for _ in range(trials)]
        _trained(journal, found[0].stage, places, BUDGET, reason)
        _trained(journal, found[1].stage, places[:6], BUDGET.longer(2), reason)
        for each in found:
            journal.conclude(each.stage, each, State(each.after, {}))
        journal.close()
    return path


def _moved(place: np.ndarray[tuple[int], np.dtype[np.float64]], name: str) -> Settings:
    factors = {axis: 2 ** (spread * x) for (axis, spread), x in zip(SPREAD.items(), place, strict=True)}
    return untuned(SHAPE).scaled(factors).with_values({}, name=name)


def _trained(journal: Journal, stage: str, settings: list[Settings], budget: Budget, reason: str) -> None:
    trials = tuple(Trial(shape=SHAPE, budget=budget, settings=each, seed=at % 2) for at, each in enumerate(settings))
    pack = Pack.of(stage, trials)
    journal.plan_pack(stage, pack, {"lanes": 1})
    rows = tuple(_row(trial, at % 7 == 6, reason) for at, trial in enumerate(trials))
    journal.commit(PackResult(pack, rows, CURVES, {"backend": "torch", "tokens_per_s": 1e4, "seconds": 9.0}))


def _row(trial: Trial, diverged: bool, reason: str) -> TrialResult:
    if diverged:
        return TrialResult(trial, "diverged", nan, nan, reason)
    start, settings = untuned(SHAPE), trial.settings
    off = [log2(settings.value(axis) / start.value(axis)) - 0.3 for axis in SPREAD]
    loss = 2.0 - 0.1 * log2(trial.budget.total_tokens / BUDGET.total_tokens) + 0.05 * trial.seed
    loss += 0.1 * off[0] ** 2 + 0.02 * off[1] ** 2 + 0.003 * off[2] ** 2
    return TrialResult(trial, "ok", loss, 0.004, metrics={"bits_per_byte": loss / 0.69, "train_loss": loss - 0.02})
