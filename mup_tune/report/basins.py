"""How a basin check reads on the page: loss against one hyperparameter at every size, and what each size ends at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from mup_tune.findings import Basin, BasinSize, Interval, Point
from mup_tune.report.figures import BLUE, INK, LINE, LINES, OFF_SCALE, PAPER, RED, SOFT, STYLE, svg

MARKS = {"pass": "✓", "fail": "✕", "inconclusive": "?"}
HEADLINES = {"pass": "Transfers", "fail": "Does not transfer", "inconclusive": "Transfer not shown"}
WIDTH, HEIGHT = 300, 240  # of one panel, in points


@dataclass(frozen=True)
class Row:
    """One size in the table; ``optimum`` is log2 of the hyperparameter's value, ``loss`` the lowest mean trained."""

    size: BasinSize
    optimum: Interval | None
    loss: float | None


@dataclass(frozen=True)
class View:
    """The basins of a stage with their figures; ``rows`` by basin."""

    basins: tuple[Basin, ...]
    rows: list[list[Row]]
    panels: Markup
    losses: Markup


def view(basins: tuple[Basin, ...], anchor: str) -> View | None:
    if not basins:
        return None
    rows = [table(basin) for basin in basins]
    return View(basins, rows, Markup(panels(basins, f"{anchor}-basin")), Markup(best_losses(basins, f"{anchor}-best")))


def leading(basins: Sequence[Basin]) -> Basin:
    """The one a reader came for: mup, or the only one there is."""
    return next((basin for basin in basins if basin.param == "mup"), basins[0])


def table(basin: Basin) -> list[Row]:
    return [_row(size) for size in basin.sizes]


def _origin(size: BasinSize) -> float:
    """log2 of the value at offset 0."""
    return log2(size.points[0].value) - size.points[0].offset


def _row(size: BasinSize) -> Row:
    optimum, at = size.optimum, _origin(size)
    if optimum is not None:
        optimum = Interval(value=at + optimum.value, low=at + optimum.low, high=at + optimum.high)
    return Row(size, optimum, _mean(size.best))


def _mean(point: Point | None) -> float | None:
    """Mean loss over seeds; None where one of them diverged."""
    losses = list(point.losses.values()) if point else []
    ended = [loss for loss in losses if loss is not None]
    return float(np.mean(ended)) if ended and len(ended) == len(losses) else None


def _shade(index: int, n: int) -> float:
    """Opacity of the line of a size: from light for the smallest to full for the largest."""
    return 1.0 if n == 1 else 0.35 + 0.65 * index / (n - 1)


def panels(basins: Sequence[Basin], name: str) -> str:
    """A panel a parametrisation, same axes: a line a size, its optimum with the CI as a horizontal bar."""
    means = [mean for basin in basins for size in basin.sizes for point in size.points if (mean := _mean(point))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * len(basins) / 72, HEIGHT / 72), layout="constrained")
        all_axes = figure.subplots(1, len(basins), sharex=True, sharey=True, squeeze=False)[0]
        low, high = _limits(means)
        all_axes[0].set_ylim(low, high)
        for axes, basin in zip(all_axes, basins, strict=True):
            axes.set_title(f"{basin.param}: {basin.verdict}", fontsize=9.5, loc="left")
            _draw(axes, basin, low, high)
            axes.set_xlabel(f"log2 {basin.hp}")
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        all_axes[0].set_ylabel("loss (nats/token)")
        all_axes[0].yaxis.set_major_locator(MaxNLocator(6) if means else NullLocator())
        return svg(figure, name, "; ".join(_describe(basin) for basin in basins))


def _limits(means: Sequence[float]) -> tuple[float, float]:
    """y range that keeps the bottoms of the bowls readable; what lies far above leaves the panel."""
    if not means:
        return 0.0, 1.0
    low = min(means)
    typical = float(np.median([mean - low for mean in means if mean > low] or [0.1]))
    high = max(mean for mean in means if mean - low <= 0.5 * OFF_SCALE * typical)
    pad = max(high - low, 1e-3)
    return low - 0.08 * pad, high + 0.12 * pad


def _draw(axes: Axes, basin: Basin, low: float, high: float) -> None:
    n, ends = len(basin.sizes), list[tuple[float, float, str, float]]()
    for index, size in enumerate(basin.sizes):
        shade, origin = _shade(index, n), _origin(size)
        xs = [origin + point.offset for point in size.points]
        means = [_mean(point) for point in size.points]
        line = [math.nan if mean is None else mean for mean in means]
        axes.plot(xs, line, "-o", color=BLUE, alpha=shade, linewidth=1.4, markersize=3.5, markeredgewidth=0)
        lost = [x for x, mean in zip(xs, means, strict=True) if mean is None]
        row = high - (0.02 + 0.035 * index) * (high - low)
        axes.plot(lost, [row] * len(lost), "x", color=RED, alpha=shade, markersize=5, markeredgewidth=1.5)
        if (at := _row(size).optimum) is not None and size.fit is not None:
            floor = size.fit.floor
            axes.plot([at.low, at.high], [floor, floor], color=INK, linewidth=1.3, zorder=3)
            axes.plot([at.value], [floor], "D", markersize=5.5, mfc=PAPER, mec=INK, zorder=4)
        inside = [(x, mean) for x, mean in zip(xs, means, strict=True) if mean is not None and mean <= high]
        if inside:
            ends.append((*inside[-1], size.label, shade))
    _label_ends(axes, ends, low, high)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, float]], low: float, high: float) -> None:
    """Labels right of the panel, one a line, pushed apart, each tied to the end of its line."""
    gap, lowest = (LINE / (HEIGHT - 60)) * (high - low), -math.inf
    for x, y, label, shade in sorted(ends, key=lambda end: end[1]):
        lowest = max(y, lowest + gap)
        axes.annotate(
            label,
            xy=(x, y),
            xytext=(1.03, lowest),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "alpha": shade, "shrinkA": 0, "shrinkB": 3},
        )


def best_losses(basins: Sequence[Basin], name: str) -> str:
    """Lowest mean loss on each size's grid ± 1 SE, against width (against parameters where the depth varies)."""
    by_width = len({size.d_model for size in basins[0].sizes}) == len(basins[0].sizes)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT * 0.8 / 72), layout="constrained")
        axes = figure.add_subplot()
        for basin, (colour, dash) in zip(basins, LINES, strict=False):
            rows = [(size, loss) for size in basin.sizes if (loss := _mean(size.best)) is not None]
            xs = [size.d_model if by_width else size.parameters for size, _ in rows]
            losses, errors = [loss for _, loss in rows], [_se(size.best) for size, _ in rows]
            axes.errorbar(xs, losses, errors, fmt="o", color=colour, markersize=4.5, capsize=2.5, elinewidth=1.1)
            axes.plot(xs, losses, color=colour, linestyle=dash, linewidth=1.4, label=basin.param)
        axes.set_xscale("log", base=2)
        if by_width:
            axes.set_xticks([size.d_model for size in basins[0].sizes], [str(s.d_model) for s in basins[0].sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("d_model" if by_width else "parameters")
        axes.set_ylabel("best loss (nats/token)")
        axes.legend(frameon=False, handlelength=2.6)
        return svg(figure, name, f"Best loss at every size: {', '.join(basin.param for basin in basins)}")


def _se(point: Point | None) -> float:
    losses = [loss for loss in point.losses.values() if loss is not None] if point else []
    return float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0


def _describe(basin: Basin) -> str:
    found = [
        f"{row.size.label} {row.optimum.value:+.2f}" if row.optimum else f"{row.size.label} none"
        for row in table(basin)
    ]
    return f"{basin.param}: loss against log2 {basin.hp} at {len(found)} sizes, optima {', '.join(found)}"
