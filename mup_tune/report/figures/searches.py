"""A joint search: every candidate in the order proposed, the best so far, and a panel an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mup_tune import stats
from mup_tune.findings.joint_search import Search
from mup_tune.report.figures.style import BLUE, GREEN, INK, SOFT, crosses, drawing, svg
from mup_tune.report.figures.values import OFF_SCALE, limits

PANELS = 8  # axes up to which each has a panel
COLUMNS, PANEL = 4, 150  # panels a row, their size in points
NEAR = 0.25 * OFF_SCALE  # most candidates are far from the best: closer to it than in other figures
SAMPLERS = {
    "tpe": "TPE",
    "gp": "Gaussian process",
    "cma-es": "CMA-ES",
    "trust-region": "Random search in a trust region",
    "random": "Random search",
}


def means(search: Search) -> list[float | None]:
    """Mean loss of each candidate; None where a seed diverged."""
    return stats.means([candidate.losses for candidate in search.candidates])


def _scatter(axes: Axes, xs: Sequence[float], means: Sequence[float | None], high: float) -> None:
    """Faint points; at the top edge a triangle for what lies above it and a cross for what diverged."""
    seen = [(x, mean) for x, mean in zip(xs, means, strict=True) if mean is not None]
    marks = {"o": [(x, mean) for x, mean in seen if mean <= high], "^": [(x, high) for x, mean in seen if mean > high]}
    for shape, points in marks.items():
        if points:  # an empty line would still claim room at the figure's corner
            style: dict[str, Any] = {"alpha": 0.45, "markersize": 5, "markeredgewidth": 0.0, "clip_on": False}
            axes.plot(*zip(*points, strict=True), shape, color=BLUE, **style)
    if lost := [x for x, mean in zip(xs, means, strict=True) if mean is None]:
        crosses(axes, lost, high, 6, 1.5, alpha=1.0, clip_on=False)


def _ring(axes: Axes, search: Search, xs: Sequence[float], means: Sequence[float | None]) -> None:
    """Around the best candidate, which trained on all seeds."""
    if search.best is not None and (mean := means[search.best]) is not None:
        axes.plot([xs[search.best]], [mean], "o", mfc="none", mec=GREEN, markersize=9)


def order_figure(search: Search, name: str) -> Markup:
    """Mean loss of every candidate in order; a step line for the best so far, a dashed one the centre."""
    found, centre = means(search), stats.mean(search.centre_losses)
    numbers = [float(index + 1) for index in range(len(found))]
    lowest = np.minimum.accumulate([math.inf if mean is None else mean for mean in found])
    ended = [mean for mean in found if mean is not None]
    with drawing(400, 210) as figure:
        axes = figure.add_subplot()
        low, high = limits([*ended, *([centre] if centre is not None else [])], NEAR)
        axes.set_ylim(low, high)
        axes.set_xlim(0.3, len(found) + 0.7)
        if centre is not None:
            axes.axhline(centre, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label="centre")
        _scatter(axes, numbers, found, high)
        known = [(x, min(float(y), high)) for x, y in zip(numbers, lowest, strict=True) if math.isfinite(y)]
        if known:
            xs, ys = zip(*[*known, (len(found) + 0.7, known[-1][1])], strict=True)
            axes.step(xs, ys, where="post", color=GREEN, linewidth=1.6, label="best so far")
        _ring(axes, search, numbers, found)
        for first in _round_starts(search)[1:]:
            axes.axvline(first + 0.5, color=SOFT, linewidth=0.5, alpha=0.6, zorder=0)
        axes.set_xlabel("candidate, in the order proposed")
        axes.set_ylabel("mean loss (nats/token)")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if axes.get_legend_handles_labels()[1]:
            figure.legend(frameon=False, loc="outside upper left", ncols=2, handlelength=2.6)
        best = f"; the best is candidate {search.best + 1}" if search.best is not None else ""
        return svg(figure, name, f"Mean loss of {len(found)} candidates of {SAMPLERS[search.sampler]}{best}")


def _round_starts(search: Search) -> list[int]:
    """Index of each round's first candidate; one where rounds are too many for lines."""
    rounds = [candidate.round for candidate in search.candidates]
    starts = [index for index, each in enumerate(rounds) if index == 0 or each != rounds[index - 1]]
    return starts if len(starts) <= 20 else starts[:1]


def axis_panels(search: Search, name: str) -> Markup:
    """Mean loss against each axis' offset, all on one loss scale; the ring is the best candidate of all."""
    found, centre = means(search), stats.mean(search.centre_losses)
    columns = min(COLUMNS, len(search.axes))
    rows = -(-len(search.axes) // columns)
    with drawing(PANEL * columns, PANEL * rows) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        known = [mean for mean in (*found, centre) if mean is not None]
        low, high = limits(known, NEAR)
        grid[0, 0].set_ylim(low, high)
        grid[0, 0].set_xlim(-1.06 * search.radius, 1.06 * search.radius)
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        for axes, axis in zip(grid.flat, search.axes, strict=False):
            xs = [candidate.offsets[axis] for candidate in search.candidates]
            _scatter(axes, xs, found, high)
            if centre is not None:
                axes.plot([0], [min(centre, high)], "s", mfc="none", mec=INK, markersize=7, markeredgewidth=1.2)
            _ring(axes, search, xs, found)
            axes.set_title(axis, fontsize=9, loc="left")
        for axes in list(grid.flat)[len(search.axes) :]:
            axes.set_visible(False)
        figure.supxlabel("log2 offset from the centre", fontsize=9)
        figure.supylabel("mean loss (nats/token)", fontsize=9)
        return svg(figure, name, f"Mean loss against the offset of {', '.join(search.axes)}")
