"""A confirmed gain in tokens: the reference's loss against how long it trains."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from mup_tune import stats
from mup_tune.findings.confirmation import TokenGain
from mup_tune.report.figures.style import BLUE, INK, PAPER, RED, SOFT, crosses, drawing, svg
from mup_tune.report.figures.values import ended, padded
from mup_tune.stats import Losses
from mup_tune.stats.tokens import TokensSaved

WIDTH, HEIGHT = 360, 250
FLOOR = 0.05  # height of the factor's mark, in shares of the axes


def seeds_levelled(rows: Sequence[Losses]) -> list[dict[int, float]]:
    """Losses without what each seed adds to all rows alike: the scatter that paired differences have."""
    there = [ended(row) for row in rows]
    seeds = set.intersection(*(set(row) for row in there))
    level = {seed: float(np.mean([row[seed] for row in there])) for seed in seeds}
    middle = float(np.mean(list(level.values()))) if level else 0.0
    return [{seed: row[seed] - level[seed] + middle for seed in sorted(seeds)} for row in there]


def token_curve(gain: TokenGain, name: str) -> Markup:
    """The reference's losses over its tokens, and where its curve meets the tuned Settings' loss."""
    factors, reference = [each.factor for each in gain.horizons], [each.losses for each in gain.horizons]
    ours, *theirs = seeds_levelled([gain.candidate_losses, *reference])
    shown = [loss for row in (ours, *theirs) for loss in row.values()]
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for factor, row in zip(factors, theirs, strict=True):
            axes.plot([factor] * len(row), list(row.values()), "o", color=BLUE, alpha=0.3, markersize=3, mew=0)
        axes.plot([1.0] * len(ours), list(ours.values()), "s", color=RED, alpha=0.35, markersize=3, mew=0)
        means = [(factor, mean) for factor, row in zip(factors, reference, strict=True) if (mean := stats.mean(row))]
        axes.plot(*zip(*means, strict=True) if means else ([], []), "o", color=BLUE, markersize=5.5)
        low, high = padded(min(shown), max(shown)) if shown else (0.0, 1.0)
        low -= 0.12 * (high - low)  # room for the factor's mark
        axes.set_ylim(low, high)
        lost = [x for x, row in zip(factors, reference, strict=True) if None in row.values()]
        crosses(axes, lost, high, 5, 1.5, clip_on=False)
        _candidate(axes, gain, factors[-1])
        axes.set_xlim(0.96, factors[-1] * 1.04)
        if gain.saved is not None:
            _meets(axes, gain.saved, factors)
        axes.set_xticks(factors, [f"{factor:.3g}×" for factor in factors])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(5) if shown else NullLocator())
        axes.set_xlabel(textwrap.fill(f"tokens of {gain.reference}, in multiples of the plan's", 64))
        axes.set_ylabel("loss (nats/token)")
        return svg(figure, name, f"Loss of {gain.reference} against its tokens, and the tuned Settings' loss")


def _candidate(axes: Axes, gain: TokenGain, longest: float) -> None:
    """The tuned Settings' mean, with the CI of the paired gain about it."""
    mean, level = stats.mean(gain.candidate_losses), stats.mean(gain.horizons[0].losses)
    if mean is None:
        return
    axes.axhline(mean, color=RED, linestyle="--", linewidth=1.3)
    axes.plot([1.0], [mean], "s", color=RED, markersize=5.5)
    paired = stats.paired_gain(gain.candidate_losses, gain.horizons[0].losses)
    if paired is not None and level is not None:
        axes.axhspan(level - paired.high, level - paired.low, color=RED, alpha=0.13, linewidth=0)
    axes.annotate("tuned, at 1×", (longest, mean), (0, 4), textcoords="offset points", ha="right", fontsize=8.5)


def _meets(axes: Axes, saved: TokensSaved, factors: Sequence[float]) -> None:
    """The fitted curve, and below it the factor with its CI; an arrow where it lies beyond the curve."""
    at = np.geomspace(factors[0], factors[-1], 60)
    axes.plot(at, [saved.loss(float(x)) for x in at], color=BLUE, linewidth=1.4)
    found, low = saved.factor, axes.get_xlim()[0]
    axes.set_xlim(min(low, 0.97 * found.low), None)
    floor = axes.get_xaxis_transform()  # tokens along, shares of the axes up
    axes.plot([found.low, found.high], [FLOOR, FLOOR], color=INK, linewidth=1.5, transform=floor)
    mark = ">" if saved.beyond else "D"
    axes.plot([found.value], [FLOOR], mark, markersize=6, mfc=PAPER, mec=INK, transform=floor, zorder=4)
    if not saved.beyond and found.value >= 1:
        bottom, top = axes.get_ylim()
        height = (saved.loss(found.value) - bottom) / (top - bottom)
        axes.plot([found.value] * 2, [FLOOR, height], ":", color=SOFT, linewidth=1.1, transform=floor)
    text = f"{'> ' if saved.beyond else ''}{found.value:.2f}×"
    left = math.log(found.value) > 0.8 * math.log(factors[-1])
    side, shift = ("right", -5) if left else ("left", 5)
    axes.annotate(text, (found.value, FLOOR), (shift, 6), floor, "offset points", ha=side, fontweight="bold")
