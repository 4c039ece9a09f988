"""Training loss over tokens: the Settings compared, the crowd of all members, and the ones that diverged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd

from mup_tune.report.figures.curves import Curve
from mup_tune.report.plain import same
from mup_tune.run.view import RunView

Each = TypeVar("Each")
MEMBERS, PACKS, POINTS = 90, 24, 60  # faint lines, packs that they are from, and points of each
LOST, FRACTION = 24, 50  # diverged members that are drawn; a mean runs over this fraction of the steps


@dataclass(frozen=True)
class Training:
    """Curves in nats/token over tokens of one member.

    ``losses``: median over the ``seeds`` that all named Settings trained on, smoothed. ``gaps``: median of
    reference − incumbent in millinats/token. ``crowd``: other members at the proxy. ``lost``: those that
    diverged. ``reasons``: how many trials diverged, by reason.
    """

    losses: dict[str, Curve] = field(default_factory=dict)
    gaps: dict[str, Curve] = field(default_factory=dict)
    seeds: int = 0
    crowd: list[Curve] = field(default_factory=list)
    lost: list[Curve] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)


def training(run: RunView) -> Training:
    """Reads few packs of however many: those of the Settings compared, and an even choice of the others."""
    losses, gaps, seeds = compared(run)
    trials = run.trials[(run.trials["shape"] == run.plan.proxy.name)]
    trials = trials[trials["total_tokens"] == run.plan.budget.total_tokens]
    gone = trials[trials["status"] != "ok"]
    every = run.trials[run.trials["status"] != "ok"]["reason"].value_counts()
    return Training(
        losses=losses,
        gaps=gaps,
        seeds=seeds,
        crowd=list(_thinned(run, _chosen(trials[trials["status"] == "ok"], MEMBERS))),
        lost=list(_thinned(run, _chosen(gone, LOST))),
        reasons={str(reason) or "not said": int(count) for reason, count in sorted(every.items())},
    )


def compared(run: RunView) -> tuple[dict[str, Curve], dict[str, Curve], int]:
    """Of the final incumbent and of each reference, over the seeds that all of them trained on."""
    final = run.settings
    if final is None:
        return {}, {}, 0
    # References that are the incumbent itself would draw its line twice.
    named = {"incumbent": final, **{name: each for name, each in run.references.items() if not same(each, final)}}
    found = {name: per_seed for name, each in named.items() if (per_seed := run.curves_of(each))}
    if "incumbent" not in found or len(found) < 2:
        return {}, {}, 0
    seeds = sorted(set.intersection(*(set(per_seed) for per_seed in found.values())))
    if not seeds:
        return {}, {}, 0
    stacks = {name: pd.concat([per_seed[seed] for seed in seeds], axis=1) for name, per_seed in found.items()}
    window = max(1, len(stacks["incumbent"]) // FRACTION)
    smooth = {name: stack.rolling(window, min_periods=1).mean() for name, stack in stacks.items()}
    losses = {name: _line(stack.median(axis=1)) for name, stack in smooth.items()}
    gaps = {
        name: _line(1e3 * (stack - smooth["incumbent"]).median(axis=1))
        for name, stack in smooth.items()
        if name != "incumbent"
    }
    return losses, gaps, len(seeds)


def _line(series: pd.Series[float]) -> Curve:
    kept = series.dropna()
    return [float(each) for each in kept.index], [float(each) for each in kept]


def _chosen(trials: pd.DataFrame, most: int) -> pd.DataFrame:
    """An even choice of packs, and then of their members."""
    packs = _even(list(dict.fromkeys(trials["pack"])), PACKS)
    rows = trials[trials["pack"].isin(packs)]
    return rows.iloc[_even(range(len(rows)), most)]


def _even(items: Sequence[Each], most: int) -> list[Each]:
    if len(items) <= most:
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, most)]


def _thinned(run: RunView, trials: pd.DataFrame) -> Iterator[Curve]:
    """A curve a trial, at few tokens that lie evenly on a log scale, smoothed as the bold lines are."""
    for hash_ in trials["hash"]:
        curve = run.curve(str(hash_))
        loss = curve["loss"].rolling(max(1, len(curve) // FRACTION), min_periods=1).mean().to_numpy()
        tokens = curve["tokens"].to_numpy()
        kept = np.isfinite(loss)
        loss, tokens = loss[kept], tokens[kept]
        if len(loss):
            places = np.unique(np.geomspace(1, len(loss), POINTS).round().astype(int)) - 1
            yield [float(each) for each in tokens[places]], [float(each) for each in loss[places]]
