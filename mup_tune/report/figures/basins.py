"""A basin check: loss against one hyperparameter at every size, and what each size ends at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from mup_tune import stats
from mup_tune.findings import Point
from mup_tune.findings.basins import Basin, BasinSize
from mup_tune.report.figures.style import BLUE, INK, LINE, LINES, PAPER, SOFT, crosses, drawing, svg
from mup_tune.report.figures.values import OFF_SCALE, ended, limits, standard_error
from mup_tune.report.formats import si
from mup_tune.stats import Interval

WIDTH, HEIGHT = 300, 240  # of one panel, in points


def origin(size: BasinSize) -> float:
    """log2 of the value at offset 0."""
    return math.log2(size.points[0].value) - size.points[0].offset


def optimum(size: BasinSize) -> Interval | None:
    """log2 of the hyperparameter's value at the optimum."""
    at, found = origin(size), size.optimum
    return found and Interval(at + found.value, at + found.low, at + found.high)


def best_loss(size: BasinSize) -> float | None:
    """The lowest mean that was trained."""
    return stats.mean(size.best.losses) if size.best else None


def _shade(index: int, n: int) -> float:
    """Opacity of the line of a size: from light for the smallest to full for the largest."""
    return 1.0 if n == 1 else 0.35 + 0.65 * index / (n - 1)


def panels(basins: Sequence[Basin], name: str) -> Markup:
    """A panel a parametrisation, same axes: a line a size, its optimum with the CI as a horizontal bar."""
    means = [
        mean for basin in basins for size in basin.sizes for point in size.points if (mean := stats.mean(point.losses))
    ]
    with drawing(WIDTH * len(basins), HEIGHT) as figure:
        all_axes = figure.subplots(1, len(basins), sharex=True, sharey=True, squeeze=False)[0]
        low, high = limits(means, 0.5 * OFF_SCALE)
        all_axes[0].set_ylim(low, high)
        for axes, basin in zip(all_axes, basins, strict=True):
            axes.set_title(f"{basin.param}: {basin.verdict}", fontsize=9.5, loc="left")
            _draw(axes, basin, low, high)
            axes.set_xlabel(f"log2 {basin.hp}")
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        all_axes[0].set_ylabel("loss (nats/token)")
        all_axes[0].yaxis.set_major_locator(MaxNLocator(6) if means else NullLocator())
        return svg(figure, name, "; ".join(_describe(basin) for basin in basins))


def _draw(axes: Axes, basin: Basin, low: float, high: float) -> None:
    n, ends = len(basin.sizes), list[tuple[float, float, str, float]]()
    for index, size in enumerate(basin.sizes):
        shade, start = _shade(index, n), origin(size)
        xs = [start + point.offset for point in size.points]
        means = stats.means([point.losses for point in size.points])
        line = [math.nan if mean is None else mean for mean in means]
        axes.plot(xs, line, "-o", color=BLUE, alpha=shade, linewidth=1.4, markersize=3.5, markeredgewidth=0)
        lost = [x for x, mean in zip(xs, means, strict=True) if mean is None]
        row = high - (0.02 + 0.035 * index) * (high - low)
        crosses(axes, lost, row, 5, 1.5, alpha=shade)
        if (at := optimum(size)) is not None and size.fit is not None:
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


def best_losses(basins: Sequence[Basin], name: str) -> Markup:
    """Lowest mean loss at each size ± 1 SE, against width, or against parameters where the depth varies."""
    by_width = len({size.d_model for size in basins[0].sizes}) == len(basins[0].sizes)
    with drawing(WIDTH, HEIGHT * 0.8) as figure:
        axes = figure.add_subplot()
        for basin, (colour, dash) in zip(basins, LINES, strict=False):
            rows = [(size, loss) for size in basin.sizes if (loss := best_loss(size)) is not None]
            xs = [size.d_model if by_width else size.parameters for size, _ in rows]
            losses, errors = [loss for _, loss in rows], [_se(size.best) for size, _ in rows]
            axes.errorbar(xs, losses, errors, fmt="o", color=colour, markersize=4.5, capsize=2.5, elinewidth=1.1)
            axes.plot(xs, losses, color=colour, linestyle=dash, linewidth=1.4, label=basin.param)
        axes.set_xscale("log", base=2)
        if by_width:
            axes.set_xticks([size.d_model for size in basins[0].sizes], [str(s.d_model) for s in basins[0].sizes])
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: si(x)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("d_model" if by_width else "parameters")
        axes.set_ylabel("best loss (nats/token)")
        axes.legend(frameon=False, handlelength=2.6)
        return svg(figure, name, f"Best loss at every size: {', '.join(basin.param for basin in basins)}")


def _se(point: Point | None) -> float:
    return standard_error(list(ended(point.losses).values())) or 0.0 if point else 0.0


def _describe(basin: Basin) -> str:
    found = [f"{size.label} {at.value:+.2f}" if (at := optimum(size)) else f"{size.label} none" for size in basin.sizes]
    return f"{basin.param}: loss against log2 {basin.hp} at {len(found)} sizes, optima {', '.join(found)}"
