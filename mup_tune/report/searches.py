"""How a joint search reads on the page: every candidate in the order proposed, the best so far, the best ten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mup_tune.findings import Candidate, Finding, Search
from mup_tune.report.figures import BLUE, GREEN, INK, OFF_SCALE, RED, SOFT, STYLE, svg
from mup_tune.report.html import environment

SHOWN = 10  # candidates in the table
PANELS = 8  # axes up to which each has a panel
COLUMNS, PANEL = 4, 150  # panels a row, their size in points
SAMPLERS = {
    "tpe": "TPE",
    "gp": "Gaussian process",
    "trust-region": "Random search in a trust region",
    "random": "Random search",
}


@dataclass(frozen=True)
class Ranked:
    """One of the best; ``number`` counts candidates in the order proposed."""

    number: int
    candidate: Candidate
    loss: float


@dataclass(frozen=True)
class View:
    """One search with its figures; ``panels`` is None where it has too many axes for one each."""

    search: Search
    sampler: str
    centre: float | None
    lost: int
    best: list[Ranked]
    order: Markup
    panels: Markup | None


def section(finding: Finding, anchor: str) -> str:
    """The HTML of all searches of a stage; empty where it made none."""
    if not finding.searches:
        return ""
    views = [_view(search, f"{anchor}-search{place}") for place, search in enumerate(finding.searches)]
    return str(environment().get_template("searches.html").render(views=views))


def _view(search: Search, name: str) -> View:
    panels = Markup(axis_panels(search, f"{name}-axes")) if len(search.axes) <= PANELS else None
    lost = sum(mean is None for mean in _means(search))
    order = Markup(order_figure(search, f"{name}-order"))
    return View(search, SAMPLERS[search.sampler], _mean(search.centre_losses), lost, best_ten(search), order, panels)


def best_ten(search: Search) -> list[Ranked]:
    """The candidates with the lowest means, best first."""
    means = sorted((mean, index) for index, mean in enumerate(_means(search)) if mean is not None)
    return [Ranked(index + 1, search.candidates[index], mean) for mean, index in means[:SHOWN]]


def _mean(losses: Mapping[int, float | None]) -> float | None:
    """Mean over seeds; None where one diverged, or none was trained."""
    ended = [loss for loss in losses.values() if loss is not None]
    return float(np.mean(ended)) if ended and len(ended) == len(losses) else None


def _means(search: Search) -> list[float | None]:
    return [_mean(candidate.losses) for candidate in search.candidates]


def _limits(losses: Sequence[float]) -> tuple[float, float]:
    """y range that keeps the differences near the best readable; what lies far above is pinned to the top."""
    if not losses:
        return 0.0, 1.0
    low = min(losses)
    typical = float(np.median([loss - low for loss in losses if loss > low] or [1e-3]))
    high = max(loss for loss in losses if loss - low <= 0.25 * OFF_SCALE * typical)
    pad = max(high - low, 1e-3)
    return low - 0.08 * pad, high + 0.12 * pad


def _scatter(axes: Axes, xs: Sequence[float], means: Sequence[float | None], high: float) -> None:
    """Faint points; at the top edge a triangle for what lies above it and a cross for what diverged."""
    marks = (
        ("o", BLUE, [(x, mean) for x, mean in zip(xs, means, strict=True) if mean is not None and mean <= high]),
        ("^", BLUE, [(x, high) for x, mean in zip(xs, means, strict=True) if mean is not None and mean > high]),
        ("x", RED, [(x, high) for x, mean in zip(xs, means, strict=True) if mean is None]),
    )
    for shape, colour, points in marks:
        if points:  # an empty line would still claim room at the figure's corner
            width, alpha, size = (1.5, 1.0, 6) if shape == "x" else (0.0, 0.45, 5)
            line = axes.plot(*zip(*points, strict=True), shape, color=colour, alpha=alpha, markersize=size)
            line[0].set(markeredgewidth=width, clip_on=False)


def _ring(axes: Axes, search: Search, xs: Sequence[float], means: Sequence[float | None]) -> None:
    """Around the best candidate, which trained on all seeds."""
    if search.best is not None and (mean := means[search.best]) is not None:
        axes.plot([xs[search.best]], [mean], "o", mfc="none", mec=GREEN, markersize=9)


def order_figure(search: Search, name: str) -> str:
    """Mean loss of every candidate in the order proposed; a step line for the best so far, a dashed one the centre."""
    means, centre = _means(search), _mean(search.centre_losses)
    numbers = [float(index + 1) for index in range(len(means))]
    lowest = np.minimum.accumulate([math.inf if mean is None else mean for mean in means])
    ended = [mean for mean in means if mean is not None]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(400 / 72, 210 / 72), layout="constrained")
        axes = figure.add_subplot()
        low, high = _limits([*ended, *([centre] if centre is not None else [])])
        axes.set_ylim(low, high)
        axes.set_xlim(0.3, len(means) + 0.7)
        if centre is not None:
            axes.axhline(centre, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label="centre")
        _scatter(axes, numbers, means, high)
        known = [(x, min(float(y), high)) for x, y in zip(numbers, lowest, strict=True) if math.isfinite(y)]
        if known:
            xs, ys = zip(*[*known, (len(means) + 0.7, known[-1][1])], strict=True)
            axes.step(xs, ys, where="post", color=GREEN, linewidth=1.6, label="best so far")
        _ring(axes, search, numbers, means)
        for first in _round_starts(search)[1:]:
            axes.axvline(first + 0.5, color=SOFT, linewidth=0.5, alpha=0.6, zorder=0)
        axes.set_xlabel("candidate, in the order proposed")
        axes.set_ylabel("mean loss (nats/token)")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if axes.get_legend_handles_labels()[1]:
            figure.legend(frameon=False, loc="outside upper left", ncols=2, handlelength=2.6)
        best = f"; the best is candidate {search.best + 1}" if search.best is not None else ""
        return svg(figure, name, f"Mean loss of {len(means)} candidates of {SAMPLERS[search.sampler]}{best}")


def _round_starts(search: Search) -> list[int]:
    """Index of each round's first candidate; one where rounds are too many for lines."""
    rounds = [candidate.round for candidate in search.candidates]
    starts = [index for index, each in enumerate(rounds) if index == 0 or each != rounds[index - 1]]
    return starts if len(starts) <= 20 else starts[:1]


def axis_panels(search: Search, name: str) -> str:
    """Mean loss against each axis' offset, all on one loss scale; the ring is the best candidate of all."""
    means, centre = _means(search), _mean(search.centre_losses)
    columns = min(COLUMNS, len(search.axes))
    rows = -(-len(search.axes) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PANEL * columns / 72, PANEL * rows / 72), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        known = [mean for mean in (*means, centre) if mean is not None]
        low, high = _limits(known)
        grid[0, 0].set_ylim(low, high)
        grid[0, 0].set_xlim(-1.06 * search.radius, 1.06 * search.radius)
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        for axes, axis in zip(grid.flat, search.axes, strict=False):
            xs = [candidate.offsets[axis] for candidate in search.candidates]
            _scatter(axes, xs, means, high)
            if centre is not None:
                axes.plot([0], [min(centre, high)], "s", mfc="none", mec=INK, markersize=7, markeredgewidth=1.2)
            _ring(axes, search, xs, means)
            axes.set_title(axis, fontsize=9, loc="left")
        for axes in list(grid.flat)[len(search.axes) :]:
            axes.set_visible(False)
        figure.supxlabel("log2 offset from the centre", fontsize=9)
        figure.supylabel("mean loss (nats/token)", fontsize=9)
        return svg(figure, name, f"Mean loss against the offset of {', '.join(search.axes)}")
