"""A made-up run through the real types: a log-parabola per axis, seeds with noise, one divergence cliff."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mup_tune.findings import AxisFinding, Comparison, Decision, Finding, Point, Reason, State
from mup_tune.findings.confirmation import Confirmation, Horizon, TokenGain
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.findings.multipliers import Move, MultiplierPasses, Pass, Prediction, ShrunkenOptimum
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.settings import Settings, untuned
from mup_tune.shape import load_shape
from mup_tune.stats import Interval, Parabola
from mup_tune.stats.tokens import tokens_saved
from mup_tune.trial import Budget, Pack, PackResult, Trial, TrialResult

SHAPE = load_shape("cpu-64")
BUDGET = Budget(
    seq_len=128,
    batch_tokens=2048,
    total_tokens=409_600,
    warmup_tokens=20_480,
    decay_tokens=81_920,
    val_tokens=65_536,
)
CORPUS = {"name": "python-stdlib", "hash": "fedcba9876543210"}
GRID = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Landscape:
    """One axis: where its optimum is (log2), how curved (nats/log2²), above which offset it diverges."""

    axis: str
    optimum: float
    curvature: float
    decision: Decision
    cliff: float = math.inf
    grid: tuple[float, ...] = GRID


REASONS: dict[Decision, Reason] = {
    "kept": "best",
    "flat": "not better",
    "not identifiable": "horizon",
    "dropped": "move failed",
}

AXES = (
    Landscape("embedding", 1.1, 0.03, "moved"),
    Landscape("lm_head", -0.4, 0.02, "moved", cliff=1.8),
    Landscape("key", 0.1, 0.001, "flat"),
    Landscape("attention_out", 3.2, 0.004, "edge"),
    Landscape("ssm_dt", 0.0, 0.0, "not identifiable", grid=(-1.0, 0.0, 1.0)),
    Landscape("qkv.ewd", 0.0, 0.0, "not identifiable", grid=()),
    Landscape("mlp_down", 0.9, 0.6, "dropped", cliff=1.3),
    Landscape("attention_out_proj.elr", 0.03, 0.012, "kept"),
    Landscape("D.lr", -0.2, 0.002, "flat"),
)


def axis_finding(land: Landscape, before: float, seeds: tuple[int, ...], floor: float = 1.9) -> AxisFinding:
    rng = np.random.default_rng(len(land.axis))
    seed_effect = {seed: rng.normal(0, 0.02) for seed in seeds}
    points = []
    for offset in land.grid:
        bowl = floor + 0.5 * land.curvature * (offset - land.optimum) ** 2
        losses = {
            seed: None if offset > land.cliff + 0.2 * place else bowl + seed_effect[seed] + rng.normal(0, 0.0015)
            for place, seed in enumerate(seeds)
        }
        points.append(Point(offset=offset, value=before * 2**offset, losses=losses))
    identifiable = land.decision != "not identifiable"
    width = 0.02 / max(land.curvature, 0.002) ** 0.5 if identifiable else 0.0
    gain = 0.5 * land.curvature * land.optimum**2
    moved = land.decision == "moved"
    return AxisFinding(
        axis=land.axis,
        before=before,
        after=before * 2**land.optimum if moved else before,
        points=tuple(points),
        fit=Parabola(
            optimum=Interval(land.optimum, land.optimum - width, land.optimum + width),
            floor=floor + float(np.mean(list(seed_effect.values()))),
            curvature=Interval(land.curvature, 0.9 * land.curvature, 1.1 * land.curvature),
            points_used=len(land.grid),
            edge=False,
        )
        if identifiable
        else None,
        gain=Interval(gain, gain - 0.0014, gain + 0.0014) if identifiable else None,
        p_value=0.0004 if moved else 0.21 if identifiable else None,
        decision=land.decision,
        reason=REASONS.get(land.decision, "fitted"),
        horizon=None if identifiable else 0.0256,
    )


def predicted(axes: tuple[AxisFinding, ...]) -> Prediction:
    """The axes that moved, each with the optimum of its fit."""
    optima = tuple(
        ShrunkenOptimum(axis=axis.axis, offset=axis.fit.optimum.value, gain=0.01, moves=axis.decision == "moved")
        for axis in axes
        if axis.fit
    )
    return Prediction(optima=optima, gain=Interval(0.02, 0.012, 0.028), detectable=0.004)


def passes(*done: tuple[AxisFinding, ...]) -> MultiplierPasses:
    """Passes over a group, each moved all together."""
    gain = Interval(0.019, 0.015, 0.023)
    move = Move(share=1.0, comparison=comparison("incumbent", gain, (3000, 3001, 3002), "all together"), p_value=0.002)
    found = tuple(
        Pass(axes=axes, prediction=predicted(axes), moves=(move,) if axes else (), noise_known=True) for axes in done
    )
    return MultiplierPasses(passes=found, most=len(found))


def finding(
    stage: str, kind: str, title: str, before: Settings, lands: tuple[Landscape, ...], seeds: tuple[int, ...]
) -> Finding:
    axes = tuple(axis_finding(land, before.value(land.axis), seeds) for land in lands)
    moved = {axis.axis: axis.after for axis in axes if axis.decision == "moved"}
    result = GlobalAxes(axes=axes, eta_lambda_T=0.0256, steps=BUDGET.steps) if kind == "elr_ewd" else passes(axes)
    return Finding(
        stage=stage,
        kind=kind,
        title=title,
        before=before,
        after=before.with_values(moved, name=f"after {stage}"),
        sigma_delta=0.0021,
        result=result,
    )


def comparison(
    reference: str, gain: Interval | None, seeds: tuple[int, ...], candidate: str = "incumbent"
) -> Comparison:
    loss = 1.8417
    shift = gain.value if gain else 0.0
    return Comparison(
        candidate=candidate,
        reference=reference,
        candidate_losses={seed: loss + 0.001 * place for place, seed in enumerate(seeds)},
        reference_losses={
            seed: loss + shift + 0.001 * place if gain or place == 0 else None for place, seed in enumerate(seeds)
        },
        gain=gain,
    )


def token_gain(
    reference: str = "elr-tuned",
    gain: float = 0.03,
    noise: float = 0.002,
    seeds: tuple[int, ...] = (10, 11, 12),
    slope: float = -0.15,
    factors: tuple[float, ...] = (1.0, 1.1, 1.3, 1.9),
    lost: int | None = None,
) -> TokenGain:
    """A loss linear in log tokens, and Settings better by ``gain``; ``lost`` diverges at the last horizon."""
    rng, offset = np.random.default_rng(0), {seed: 0.01 * (seed % 7) for seed in seeds}

    def trained(level: float) -> dict[int, float | None]:
        return {seed: level + offset[seed] + rng.normal(0, noise) for seed in seeds}

    candidate = trained(1.9 - gain)
    rows = [trained(1.9 + slope * math.log(factor)) for factor in factors]
    if lost is not None:
        rows[-1][lost] = None
    horizons = tuple(
        Horizon(factor=factor, tokens=round(BUDGET.total_tokens * factor), elr=0.02 / factor**0.3, losses=losses)
        for factor, losses in zip(factors, rows, strict=True)
    )
    saved = tokens_saved(candidate, rows, factors)
    return TokenGain(reference=reference, horizons=horizons, candidate_losses=candidate, saved=saved)


def confirmation(
    comparisons: tuple[Comparison, ...],
    before: Settings,
    stage: str = "03-confirm",
    tokens: TokenGain | None = None,
) -> Finding:
    return Finding(
        stage=stage,
        kind="confirm",
        title="Confirmation on fresh seeds",
        before=before,
        after=before,
        result=Confirmation(comparisons=comparisons, tokens=tokens),
    )


def synthetic_findings(
    seeds: tuple[int, ...], comparisons: tuple[Comparison, ...], axes: tuple[Landscape, ...] = AXES[:2]
) -> tuple[Finding, ...]:
    start = untuned(SHAPE)
    first = finding("01-elr", "elr_ewd", "Global ELR", start, (Landscape("elr", 0.7, 0.08, "moved"),), seeds)
    second = finding("02-multipliers", "micro", "Multipliers one by one", first.after, axes, seeds)
    last = confirmation(comparisons, second.after)
    return (first, second, last) if comparisons else (first, second)


COMPARISONS = (
    comparison("elr-tuned", Interval(0.0452, 0.0381, 0.0523), (10, 11, 12)),
    comparison("untuned", Interval(0.1123, 0.1012, 0.1234), (10, 11, 12)),
    comparison("falcon-h1-published", None, (10, 11, 12)),
)


def _row(trial: Trial, loss: float, diverged: bool) -> TrialResult:
    metrics = {
        "bits_per_byte": loss / math.log(2),
        "train_loss": loss - 0.02,
        "eta_lambda_T": 0.0256,
        "clipped_fraction": 0.031,
        "tokens_per_s": 5100.0,
    }
    return TrialResult(trial, "diverged" if diverged else "ok", math.nan if diverged else loss, 0.004, metrics=metrics)


def _curves(seeds: tuple[int, ...], level: float) -> dict[str, list[float]]:
    """Members with one seed share their noise, as members of one pack share their batches."""
    steps = np.arange(1, BUDGET.steps + 1)
    tables = []
    for member, seed in enumerate(seeds):
        noise = np.random.default_rng(seed).normal(0, 0.05, len(steps))
        loss = level + 3.7 / (1 + steps / 20) + noise
        columns = {"member": member, "step": steps, "tokens": steps * BUDGET.batch_tokens, "loss": loss}
        tables.append(pd.DataFrame({**columns, "grad_norm": 0.5, "clipped": 0.0, "eta": 1e-3}))
    return {str(name): list(column) for name, column in pd.concat(tables).items()}


def plan(name: str, stages: tuple[str, ...] = ("elr_ewd", "micro", "confirm")) -> dict[str, Any]:
    return {
        "name": name,
        "about": "A short tune of a small proxy.",
        "proxy": SHAPE.model_dump(mode="json"),
        "start": untuned(SHAPE).model_dump(mode="json"),
        "seeds": [0, 1, 2],
        "budget": BUDGET.model_dump(mode="json"),
        "data": [{"corpus": "python-stdlib", "weight": 1.0, "max_epochs": 1.0}],
        "stages": [{"kind": kind} for kind in stages],
    }


def write_run(
    path: Path,
    findings: tuple[Finding, ...],
    references: dict[str, Settings],
    name: str = "quickstart",
    seeds: tuple[int, ...] = (10, 11, 12),
    diverged: bool = False,
    trained: bool = True,
    stages: tuple[str, ...] = ("elr_ewd", "micro", "confirm"),
    corpus: dict[str, Any] = CORPUS,
) -> Path:
    """A run folder by the run's own journal: its last stage trained the incumbent and each reference."""
    with RunFolder.create_or_resume(path, plan(name, stages), "0123456789abcdef", corpus) as folder:
        journal = Journal(folder, writable=True)
        for each in findings:
            journal.begin_stage(each.stage, each.kind, each.title, each.before)
        stage, final = (findings[-1].stage, findings[-1].after) if findings else ("01-elr", untuned(SHAPE))
        if not findings:
            journal.begin_stage(stage, "elr_ewd", "Global ELR", final)
        for index, settings in enumerate([final, *references.values()] if trained else []):
            trials = tuple(Trial(shape=SHAPE, budget=BUDGET, settings=settings, seed=seed) for seed in seeds)
            pack, level = Pack.of(stage, trials), 1.84 + 0.05 * index
            journal.plan_pack(stage, pack, {"lanes": 2})
            rows = tuple(_row(trial, level, diverged or (index > 0 and trial.seed == 12)) for trial in trials)
            ran = {"backend": "torch-chunked", "device": "cpu", "threads": 1, "torch": "2.13.0"}
            speed = {"tokens_per_s": 15_300.0, "mfu": 0.23, "seconds": 81.0}
            journal.commit(PackResult(pack, rows, _curves(seeds, level), {**ran, **speed}))
        for each in findings:
            journal.conclude(each.stage, each, State(each.after, references))
        journal.close()
    return path


def full_run(path: Path, name: str = "quickstart", axes: tuple[Landscape, ...] = AXES) -> Path:
    findings = synthetic_findings((0, 1, 2), COMPARISONS, axes)
    return write_run(path, findings, {"untuned": untuned(SHAPE), "elr-tuned": findings[0].after}, name)
