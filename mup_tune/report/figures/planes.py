"""The plane of ELR and EWD: every pair that was trained, the bowl through them, and where the stage went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from mup_tune import stats
from mup_tune.findings.global_axes import GlobalAxes, Place, Plane
from mup_tune.report.figures.style import BLUE, GREEN, INK, PAPER, SOFT, crosses, drawing, svg
from mup_tune.report.formats import MINUS, si
from mup_tune.stats import Interval
from mup_tune.stats.bowl import Bowl

WIDTH, SIDES = 420, 100  # of the figure, and what of it labels take beside the axes, in points
LEAST, MOST = 190, 400  # height of the axes, in points
PAD = 0.3  # log2 beyond the outermost pairs
CONTOURS = 5
SERIES = (1, 2, 5)  # of the contours' levels, times powers of ten
# Where a label may stand beside its mark, best place first: offsets in points and alignments.
PLACES = ((0, 7, "center", "bottom"), (7, 0, "left", "center"), (-7, 0, "right", "center"), (0, -8, "center", "top"))
Spot = tuple[float, float]  # log2 offsets of (ELR, EWD) from where the stage began
Line = tuple[Spot, Spot]  # from one to the other


@dataclass(frozen=True)
class Chart:
    """A plane with what its figure needs: ``start`` and ``end`` are (ELR, EWD), losses are in mnat/token."""

    plane: Plane
    start: tuple[float, float]
    end: tuple[float, float]

    @classmethod
    def of(cls, result: GlobalAxes) -> Chart | None:
        """None where ELR and EWD were not swept together."""
        if result.bowl is None:
            return None
        found = {axis.axis: (axis.before, axis.after) for axis in result.axes}
        start, end = zip(found["elr"], found["ewd"], strict=True)
        return cls(result.bowl, start, end)

    @property
    def bowl(self) -> Bowl | None:
        """The fit, where its curvature is shown along both axes."""
        fit = self.plane.fit
        return fit if fit is not None and fit.xx.above_0 and fit.yy.above_0 else None

    @cached_property
    def excesses(self) -> list[float | None]:
        """By place, the mean loss above the floor; None where a seed diverged."""
        means = stats.means([place.losses for place in self.plane.places])
        floor = self.bowl.floor if self.bowl else min((loss for loss in means if loss is not None), default=0.0)
        return [None if loss is None else 1e3 * (loss - floor) for loss in means]

    @property
    def ended(self) -> list[tuple[float, Place]]:
        """The places where no seed diverged, with their losses above the floor."""
        pairs = zip(self.excesses, self.plane.places, strict=True)
        return [(excess, place) for excess, place in pairs if excess is not None]

    @property
    def diverged(self) -> int:
        return self.excesses.count(None)

    @property
    def moved(self) -> Spot:
        """The offset of ``end``."""
        return math.log2(self.end[0] / self.start[0]), math.log2(self.end[1] / self.start[1])

    @property
    def levels(self) -> list[float]:
        """Of the contours: the highest of 1, 2, 5, 10 … from the bowl's lowest point to its highest pair."""
        if self.bowl is None:
            return []
        low = 1e3 * float(self.bowl.above_floor(self.bowl.x.value, self.bowl.y.value))
        top = max(1e3 * float(self.bowl.above_floor(place.elr, place.ewd)) for _, place in self.ended)
        decades = range(math.floor(math.log10(top)) - CONTOURS, math.floor(math.log10(top)) + 1)
        return [level for n in decades for each in SERIES if low < (level := each * 10.0**n) <= top][-CONTOURS:]


def plane_figure(chart: Chart, name: str) -> Markup:
    """Pairs with their loss above the floor, contours of the bowl, its optimum with CIs, start and end."""
    spots = [(place.elr, place.ewd) for place in chart.plane.places]
    (left, bottom), (right, top) = np.min(spots, axis=0) - PAD, np.max(spots, axis=0) + PAD
    unit = (WIDTH - SIDES) / (right - left)  # points per log2, so that η's lines rise at about 45°
    with drawing(WIDTH, 40 + min(MOST, max(LEAST, unit * (top - bottom)))) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="ELR", ylabel="EWD")
        for axis, start in zip((axes.xaxis, axes.yaxis), chart.start, strict=True):
            axis.set_major_locator(MaxNLocator(7, integer=True))
            axis.set_major_formatter(FuncFormatter(lambda offset, _, start=start: f"{start * 2.0**offset:.3g}"))
        _eta_lines(axes, chart.start[0] / chart.start[1])
        _pairs(axes, chart)
        _way(axes, chart.moved)
        lines = [((0.0, 0.0), chart.moved), *(_optimum(axes, chart.bowl) if chart.bowl else ())]
        figure.draw_without_rendering()  # the layout decides where the marks are
        taken = [_around(axes, spot, 5) for spot in (*spots, chart.moved)]
        taken += [_around(axes, spot, 2.5) for line in lines for spot in np.linspace(line[0], line[1], 41)]
        taken += _label_pairs(axes, chart, taken)
        if chart.bowl and chart.levels:
            _contours(axes, chart.bowl, chart.levels, spots, taken)
        return svg(figure, name, describe(chart))


def _pairs(axes: Axes, chart: Chart) -> None:
    """Fuller where the loss is lower; a cross where a seed diverged."""
    typical = float(np.median([excess for excess, _ in chart.ended])) if chart.ended else 0.0
    for index, (place, excess) in enumerate(zip(chart.plane.places, chart.excesses, strict=True)):
        at, gid = ([place.elr], [place.ewd]), f"pair{index}"
        if excess is None:
            crosses(axes, at[0], place.ewd, 7, 1.8, gid=gid, zorder=5)
            continue
        shade = min(1.0, max(0.0, 1 - excess / max(2 * typical, 1e-9)))
        axes.plot(*at, "o", markersize=6.5, mfc=PAPER, mec="none", zorder=5)
        axes.plot(*at, "o", markersize=6.5, mfc=(BLUE, shade), mec=BLUE, gid=gid, zorder=5)


def _around(axes: Axes, spot: Spot, reach: float) -> Bbox:
    """The square about a place, in points of the display."""
    x, y = axes.transData.transform(spot)
    return Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)


def _label_pairs(axes: Axes, chart: Chart, taken: Sequence[Bbox]) -> list[Bbox]:
    """Loss above the floor, or how many seeds diverged, on the side of the mark that covers least."""
    labels: list[Bbox] = []
    for place, excess in zip(chart.plane.places, chart.excesses, strict=True):
        lost = sum(loss is None for loss in place.losses.values())
        text = f"{lost}/{len(place.losses)}" if excess is None else number(excess)
        label = _label(axes, text, (place.elr, place.ewd), xytext=(0, 0), textcoords="offset points")
        labels.append(_beside(label, [*taken, *labels]))
    return labels


def _beside(label: Annotation, taken: Sequence[Bbox]) -> Bbox:
    """Puts a label on the side of its mark where it covers least, and returns what it then takes."""

    def put(side: tuple[float, float, str, str]) -> Bbox:
        dx, dy, ha, va = side
        label.set(position=(dx, dy), ha=ha, va=va)
        return label.get_window_extent()

    return put(min(PLACES, key=lambda side: put(side).count_overlaps(taken)))


def _label(axes: Axes, text: str, at: Spot, **style: Any) -> Annotation:
    """Small text on paper, for lines may pass behind it."""
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.4}
    label = axes.annotate(text, at, fontsize=8, bbox=box, zorder=4, **style)
    label.set_in_layout(False)  # it stands inside the frame
    return label


def _contours(axes: Axes, bowl: Bowl, levels: Sequence[float], spots: Sequence[Spot], taken: Sequence[Bbox]) -> None:
    """Over the box of the pairs, for the bowl says nothing beyond; labelled where most room is."""
    (left, bottom), (right, top) = np.min(spots, axis=0), np.max(spots, axis=0)
    x_YX, y_YX = np.meshgrid(np.linspace(left, right, 121), np.linspace(bottom, top, 121))
    loss_YX = 1e3 * bowl.above_floor(x_YX, y_YX)
    drawn = axes.contour(x_YX, y_YX, loss_YX, levels, colors=[INK], linewidths=0.8, alpha=0.5, zorder=1)
    drawn.set_gid("contours")
    middles = [((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in taken]
    for level, lines in zip(levels, drawn.allsegs, strict=True):
        if not lines:
            continue
        way_N2 = np.concatenate(lines)
        gap_NK2 = axes.transData.transform(way_N2)[:, None] - np.array(middles)
        spot = way_N2[int(np.hypot(0.6 * gap_NK2[..., 0], gap_NK2[..., 1]).min(axis=1).argmax())]
        middles.append(tuple(axes.transData.transform(spot)))
        _label(axes, number(level), tuple(spot), ha="center", va="center", color=SOFT, style="italic")


def _optimum(axes: Axes, bowl: Bowl) -> list[Line]:
    """The lowest point and its CIs, whose ends are returned."""
    x, y = bowl.x, bowl.y
    bars: list[Line] = [((x.low, y.value), (x.high, y.value)), ((x.value, y.low), (x.value, y.high))]
    for bar in bars:
        axes.plot(*zip(*bar, strict=True), color=GREEN, linewidth=1.6, solid_capstyle="butt", zorder=3)
    axes.plot([x.value], [y.value], "D", markersize=6, mfc=PAPER, mec=GREEN, mew=1.5, gid="optimum", zorder=6)
    return bars


def _way(axes: Axes, moved: Spot) -> None:
    """A square where the stage began, a ring where it ended, and an arrow between them."""
    axes.plot([0], [0], "s", markersize=11, mfc="none", mec=INK, markeredgewidth=1.2, gid="start", zorder=6)
    axes.plot(*([each] for each in moved), "o", markersize=13, mfc="none", mec=INK, mew=1.2, gid="end", zorder=6)
    if any(moved):
        style = {"arrowstyle": "->", "color": INK, "linewidth": 1.1, "shrinkA": 6, "shrinkB": 7}
        axes.annotate("", moved, (0, 0), arrowprops=style, zorder=3)


def _eta_lines(axes: Axes, eta: float) -> None:
    """Where η = ELR/EWD is what it was at the start, times powers of two; values stand outside the frame."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    step = 1 if right - left + top - bottom < 5 else 2
    for n in range(step * math.floor((left - top) / step), math.ceil(right - bottom), step):
        first, last = max(left, bottom + n), min(right, top + n)
        if last - first < 0.12 * (right - left):
            continue
        axes.plot([first, last], [first - n, last - n], color=SOFT, linewidth=0.8, linestyle=(0, (1, 2.5)), zorder=0)
        over = last < right
        side: dict[str, Any] = {"ha": "center", "va": "bottom"} if over else {"ha": "left", "va": "center"}
        shift, text = ((0, 2) if over else (3, 0)), f"η {eta * 2.0**n:.2g}"
        axes.annotate(text, (last, last - n), shift, textcoords="offset points", color=SOFT, fontsize=8, **side)


def number(mnat: float) -> str:
    """Millinats without a plus, to be read beside a mark: ``3.5``, ``187``, ``5.23 k``."""
    size = abs(mnat)
    text = si(size) if size >= 999.5 else f"{size:.0f}" if size >= 9.95 else f"{size:.1f}".removesuffix(".0")
    return text if mnat > 0 or text == "0" else MINUS + text


def describe(chart: Chart) -> str:
    """What the figure shows, in words."""
    (elr, ewd), (end_elr, end_ewd), bowl = chart.start, chart.end, chart.bowl
    said = [f"Loss over ELR and EWD at {len(chart.plane.places)} pairs, {chart.diverged} diverged"]
    if chart.ended:
        excess, best = min(chart.ended, key=lambda pair: pair[0])
        above = f", {number(excess)} mnat/token above the bowl's floor" if bowl else ""
        said.append(f"lowest at ELR {elr * 2**best.elr:.3g}, EWD {ewd * 2**best.ewd:.3g}{above}")
    if bowl:
        said.append(f"the bowl's lowest point at ELR {_range(elr, bowl.x)}, EWD {_range(ewd, bowl.y)}")
        said += [f"contours at {', '.join(map(number, chart.levels))} mnat/token"] if chart.levels else []
    else:
        said.append("no bowl")
    said.append(f"from ELR {elr:.3g}, EWD {ewd:.3g} to ELR {end_elr:.3g}, EWD {end_ewd:.3g}")
    return "; ".join(said)


def _range(start: float, at: Interval) -> str:
    """A place along an axis with its CI, as values."""
    value, low, high = (f"{start * 2.0**each:.3g}" for each in (at.value, at.low, at.high))
    return f"{value} ({low} to {high})"
