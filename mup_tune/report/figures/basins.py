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
from mup_tune.report.figures.style import BLUE, LINES, PAPER, SOFT, crosses, drawing, svg
from mup_tune.report.figures.values import ended, standard_error
from mup_tune.report.formats import minus, si
from mup_tune.stats import Interval

WIDTH, HEIGHT = 300, 240  # of one panel, in points, without the rows of optima
LINEAR = 10.0  # mnat/token: what lies below it is drawn on a linear scale
MARKERS = "os^Dv<>P"


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


def excesses(size: BasinSize) -> list[float | None]:
    """By point, the mean loss above the size's lowest one, in mnat/token; None where a seed diverged."""
    means = stats.means([point.losses for point in size.points])
    lowest = min((mean for mean in means if mean is not None), default=0.0)
    return [None if mean is None else 1e3 * (mean - lowest) for mean in means]


def panels(basins: Sequence[Basin], name: str) -> Markup:
    """A panel a parametrisation, same axes: a line a size above its own lowest loss, optima with CIs below.

    Where a wall of hundreds of mnat shares the panel with the bowl, the scale is logarithmic beyond LINEAR.
    """
    rows = max(len(basin.sizes) for basin in basins)
    highest = max((each for basin in basins for size in basin.sizes for each in excesses(size) if each), default=1.0)
    strip = 16 * rows
    with drawing(WIDTH * len(basins), HEIGHT + strip) as figure:
        grid = figure.subplots(2, len(basins), sharex=True, squeeze=False, height_ratios=(HEIGHT - 50, strip))
        for upper, lower, basin in zip(*grid, basins, strict=True):
            upper.set_title(f"{basin.param}: {basin.verdict}", fontsize=9.5, loc="left")
            _scale(upper, highest)
            _draw(upper, basin)
            _optima(lower, basin)
            lower.set_xlabel(f"log2 {basin.hp}; optimum with 95 % CI")
            lower.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        xs = [origin(size) + point.offset for basin in basins for size in basin.sizes for point in size.points]
        grid[0, 0].set_xlim(min(xs) - 0.6, max(xs) + 0.6)  # a CI that is not known must not press the bowls together
        grid[0, 0].set_ylabel("loss − lowest (mnat/token)")
        return svg(figure, name, "; ".join(_describe(basin) for basin in basins))


def _scale(axes: Axes, highest: float) -> None:
    """The same for all panels, so that their bowls compare."""
    if highest <= 10 * LINEAR:
        axes.set_ylim(-0.06 * highest, 1.15 * highest)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.set_yscale("symlog", linthresh=LINEAR, linscale=1.0)
        axes.set_ylim(-0.15 * LINEAR, 1.6 * highest)
        axes.axhspan(-0.15 * LINEAR, LINEAR, color=SOFT, alpha=0.1, linewidth=0, zorder=0)
        decades = [LINEAR * 10.0**power for power in range(5)]
        axes.set_yticks([0.0, LINEAR / 2, *(each for each in decades if each <= 1.6 * highest)])
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.4g}"))


def _draw(axes: Axes, basin: Basin) -> None:
    n, (_, high) = len(basin.sizes), axes.get_ylim()
    for index, size in enumerate(basin.sizes):
        start, found = origin(size), excesses(size)
        xs = [start + point.offset for point in size.points]
        line = [math.nan if each is None else each for each in found]
        axes.plot(
            xs, line, linewidth=1.4, markersize=4.5, markeredgewidth=0,
            color=BLUE, alpha=_shade(index, n), marker=MARKERS[index % len(MARKERS)],
        )  # fmt: skip
        lost = [x + 0.06 * (index - (n - 1) / 2) for x, each in zip(xs, found, strict=True) if each is None]
        crosses(axes, lost, high, 6, 1.5, alpha=_shade(index, n), clip_on=False)


def _optima(axes: Axes, basin: Basin) -> None:
    """A row a size, the smallest first: where its optimum lies. Drift is a lean of the column."""
    n = len(basin.sizes)
    for y, size in enumerate(basin.sizes):
        if (at := optimum(size)) is None:
            axes.annotate(
                "not found", (0.5, y), xycoords=("axes fraction", "data"), ha="center", va="center", color=SOFT
            )
            continue
        shade, marker = _shade(y, n), MARKERS[y % len(MARKERS)]
        axes.plot([at.low, at.high], [y, y], color=BLUE, linewidth=1.8, alpha=shade, solid_capstyle="butt")
        axes.plot([at.value], [y], marker, markersize=6, mfc=PAPER, mec=BLUE, zorder=4)
    if (first := optimum(basin.sizes[0])) is not None:
        axes.axvline(first.value, color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.set_yticks(range(n), [size.label for size in basin.sizes])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(n - 0.4, -0.6)


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
    found = [
        f"{size.label} {minus(f'{at.value:+.2f}')}" if (at := optimum(size)) else f"{size.label} none"
        for size in basin.sizes
    ]
    return f"{basin.param}: loss against log2 {basin.hp} at {len(found)} sizes, optima {', '.join(found)}"
