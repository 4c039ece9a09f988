"""All settings in one figure: how far each moved, and how sensitive the loss is to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mup_tune.report import formats
from mup_tune.report.figures.style import BLUE, GREEN, INK, PAPER, RED, SOFT, drawing, svg
from mup_tune.report.overview import Change
from mup_tune.stats import Interval

WIDTH, ROW = 640, 14  # of the figure, and of one of its rows, in points
TITLES = {
    "global": "global",
    "forward": "12 forward",
    "LR": "16 learning-rate",
    "WD": "7 weight-decay",
}
LINEAR = 5.0  # mnat/token per (log2)²: below it curvatures are on a linear scale, beyond on a logarithmic one


def glance(rows: Sequence[Change], name: str) -> Markup:
    """A row a setting: log2 from start to tuned with both values, curvature with its 95 % CI."""
    places, titles, end = _places(rows)
    with drawing(WIDTH, 52 + ROW * end) as figure:
        moves, curves = figure.subplots(1, 2, width_ratios=(5, 4))
        _style(moves, end)
        _style(curves, end)
        furthest = max([abs(row.log2) for row in rows if row.kind != "global"] + [1.0])
        wide = max([furthest, *(abs(row.log2) for row in rows if row.name != "rope_base")])
        moves.set_xlim(-1.08 * wide, 1.08 * wide)
        for y, row in zip(places, rows, strict=True):
            _move(moves, y, row, wide)
        labels = [f"{row.name}  {row.mark}" if row.mark else row.name for row in rows]
        moves.set_yticks(places, labels)
        for text, y in titles:
            moves.annotate(text, (-0.02, y), xycoords=("axes fraction", "data"), ha="right", va="center", color=SOFT)
        moves.set_xlabel("start → tuned (log2)")
        moves.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        moves.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.signed(x, 0 if x == round(x) else 1)))
        for panel, text in ((moves, "value at start → tuned"), (curves, "")):
            panel.annotate(text, (1.02, -0.2), xycoords=("axes fraction", "data"), color=SOFT, va="center")
        curves.set_yticks(places, [""] * len(places))
        known = [(y, row.curvature) for y, row in zip(places, rows, strict=True) if row.curvature is not None]
        _scale(curves, [each for _, each in known])
        for y, row in zip(places, rows, strict=True):
            if row.curvature is not None:
                _curvature(curves, y, row.curvature)
            elif not row.swept:
                curves.annotate("not swept", (0, y), (4, 0), textcoords="offset points", va="center", color=SOFT)
        curves.set_xlabel("sensitivity: curvature\n(mnat/token per (log2)²)")
        moved = sum(row.moved for row in rows)
        told = ", ".join(f"{row.name} {formats.log2(row.log2)}" for row in rows if row.moved)
        return svg(figure, name, f"{moved} of {len(rows)} settings moved, in log2: {told or 'none'}")


def _places(rows: Sequence[Change]) -> tuple[list[float], list[tuple[str, float]], float]:
    """y of every row and of every group's title, and where the last row ends."""
    at, places, titles = 0.0, list[float](), list[tuple[str, float]]()
    for kind, group in groupby(rows, key=lambda row: row.kind):
        titles.append((TITLES[kind], at + 0.4))
        at += 1.2
        for _ in group:
            places.append(at + 0.2)
            at += 1
        at += 0.4
    return places, titles, at


def _style(axes: Axes, end: float) -> None:
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7, zorder=0)
    axes.grid(axis="x", color=SOFT, linewidth=0.4, alpha=0.35)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(end, -0.6)


def _move(axes: Axes, y: float, row: Change, wide: float) -> None:
    """A dumbbell from the start. Hollow: swept, and it stayed. A dash: not swept."""
    x = max(-1.04 * wide, min(1.04 * wide, row.log2))
    beyond = x != row.log2
    if row.moved:
        axes.plot([0, x], [y, y], color=BLUE, linewidth=2.2, solid_capstyle="butt")
        axes.plot([x], [y], (">" if x > 0 else "<") if beyond else "o", markersize=5.5, mfc=BLUE, mec=BLUE)
        text = f"{formats.value(row.before)} → {formats.value(row.after)}"
        axes.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
        return
    if row.swept:
        axes.plot([0], [y], "o", markersize=5.5, mfc=PAPER, mec=RED if row.decision == "dropped" else BLUE)
    else:
        axes.plot([0], [y], "_", markersize=6, color=SOFT)
    axes.annotate(
        formats.value(row.after), (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=SOFT
    )


def _scale(axes: Axes, known: Sequence[Interval]) -> None:
    """Linear near 0 and logarithmic beyond, where curvatures span decades."""
    ends = [1e3 * each.value for each in known] + [1e3 * each.high for each in known if each.above_0]
    high, low = max([1.0, *ends]), min([0.0, *(1e3 * each.value for each in known)])
    if high > 4 * LINEAR:
        axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.8)
        ticks = [t for p in range(5) for t in (1e1 * 10**p, 5e1 * 10**p) if t <= 1.6 * high]
        axes.set_xticks([0.0, LINEAR, *ticks])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.minus(f"{x:,.4g}")))
    axes.set_xlim(min(1.5 * low, -0.4 * min(high, LINEAR)), 1.6 * high)


def _curvature(axes: Axes, y: float, curvature: Interval) -> None:
    """Hollow where the interval holds 0; an end beyond the panel is cut there with an arrow."""
    left, right = axes.get_xlim()
    low, value, high = (1e3 * each for each in (curvature.low, curvature.value, curvature.high))
    shown = curvature.above_0
    colour = GREEN if shown else SOFT
    axes.plot([max(low, left), min(high, right)], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
    for end, edge, mark in ((low, left, "<"), (high, right, ">")):
        if (end < edge) if mark == "<" else (end > edge):
            axes.plot([edge], [y], mark, color=colour, markersize=4.5, clip_on=False)
    place = min(max(value, left), right)
    axes.plot([place], [y], "s", markersize=4.5, mfc=colour if shown else PAPER, mec=colour, clip_on=False)
