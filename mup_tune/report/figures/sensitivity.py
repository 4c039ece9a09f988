"""How sensitive the loss is to each axis of a stage: curvatures with their CIs, largest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mup_tune.findings import AxisFinding
from mup_tune.report import formats
from mup_tune.report.figures.style import BLUE, PAPER, SOFT, drawing, svg
from mup_tune.report.html import rendered
from mup_tune.stats import Parabola

WIDTH, LINE = 400, 15  # of the figure, and of one of its rows, in points
DECADE = 10.0  # curvatures that span more than this are drawn on a log scale


@dataclass(frozen=True)
class Sensitivity:
    """One axis and the fit its curvature is from; ``shown``: the CI lies above 0."""

    axis: str
    fit: Parabola

    @property
    def shown(self) -> bool:
        return self.fit.curvature.above_0

    @property
    def mnat(self) -> tuple[float, float, float]:
        """(low, value, high) in mnat/token per (log2)²."""
        curvature = self.fit.curvature
        return 1e3 * curvature.low, 1e3 * curvature.value, 1e3 * curvature.high


def section(swept: Sequence[AxisFinding], anchor: str) -> str:
    """The figure and how to read it, as HTML; empty where fewer than two axes have a fit."""
    rows = ranked(swept)
    if len(rows) < 2:
        return ""
    fitted, top = {row.axis for row in rows}, rows[0] if rows[0].shown else None
    return rendered(
        "sensitivity.html",
        figure=sensitivity_figure(rows, f"{anchor}-sensitivity"),
        top=top,
        cost=_number(top.mnat[1] / 2) if top else "",
        hidden=any(not row.shown for row in rows),
        robust=any(row.fit.robust for row in rows),
        unfitted=[name for name in dict.fromkeys(axis.axis for axis in swept if axis.points) if name not in fitted],
    )


def ranked(swept: Sequence[AxisFinding]) -> list[Sensitivity]:
    """Axes with a fit, of the last pass that has one: shown curvatures first, largest first."""
    last = {axis.axis: Sensitivity(axis.axis, axis.fit) for axis in swept if axis.fit is not None}
    return sorted(last.values(), key=lambda row: (not row.shown, -row.fit.curvature.value))


def sensitivity_figure(rows: Sequence[Sensitivity], name: str) -> Markup:
    """Dot and 95 % CI per axis; hollow where the CI reaches 0. Logarithmic where the values span decades."""
    with drawing(WIDTH, 46 + LINE * len(rows)) as figure:
        axes = figure.add_subplot()
        _scale(axes, rows)
        left, right = axes.get_xlim()
        for y, row in enumerate(rows):
            low, value, high = row.mnat
            colour = BLUE if row.shown else SOFT
            axes.plot([max(low, left), min(high, right)], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            for end, mark in ((low, "<"), (high, ">")):  # an arrow where an end lies beyond the panel
                inside = left < end < right
                place, shape = (end, "|") if inside else (min(max(end, left), right), mark)
                axes.plot([place], [y], shape, color=colour, markersize=6 if inside else 4, mew=1.2, clip_on=False)
            marker = "D" if row.fit.robust else "o"
            at = min(max(value, left), right)
            axes.plot([at], [y], marker, markersize=6, mfc=colour if row.shown else PAPER, mec=colour, clip_on=False)
            axes.annotate(_number(value), (1.02, y), xycoords=("axes fraction", "data"), va="center")
        axes.set_yticks(range(len(rows)), [row.axis for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x", color=SOFT, linewidth=0.4, alpha=0.4)
        axes.set_axisbelow(True)
        axes.set_xlabel("curvature (mnat/token per (log2)²)")
        told = ", ".join(f"{row.axis} {_number(row.mnat[1])}" for row in rows)
        return svg(figure, name, f"Curvature of the loss along each axis, mnat/token per (log2)²: {told}")


def _scale(axes: Axes, rows: Sequence[Sensitivity]) -> None:
    """x limits that hold every shown CI; on a log scale CIs that reach 0 leave the panel on the left."""
    values = [row.mnat[1] for row in rows]
    highs, lows = [row.mnat[2] for row in rows if row.shown] or values, [row.mnat[0] for row in rows if row.shown]
    if min(values) > 0 and max(values) > DECADE * min(values):
        axes.set_xscale("log")
        axes.set_xlim(0.7 * min([*lows, *values]), 1.3 * max([*highs, *values]))
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=9))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _number(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return
    right = 1.08 * max([*highs, *values, 1e-3])
    axes.set_xlim(min(0.0, *(max(row.mnat[0], -0.4 * right) for row in rows)), right)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _number(mnat: float) -> str:
    """Three significant digits without an exponent, as far as millinats go."""
    if not math.isfinite(mnat):
        return formats.NONE
    digits = max(0, 2 - int(np.floor(np.log10(max(abs(mnat), 1e-2)))))
    return f"{mnat:,.{digits}f}".rstrip("0").rstrip(".").replace("-", formats.MINUS) if digits else f"{mnat:,.0f}"
