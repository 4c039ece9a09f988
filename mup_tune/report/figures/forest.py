"""Gains as forest plots: a dot and a 95 % interval a row, in groups, in nats or in tokens."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mup_tune.report import formats
from mup_tune.report.figures.scales import spread
from mup_tune.report.figures.style import BLUE, INK, PAPER, RED, SOFT, drawing, svg
from mup_tune.stats import Interval
from mup_tune.stats.tokens import TokensSaved

LINE, GAP = 12, 0.6  # points of a line of text, and lines between rows
WIDTH, WRAP = 190, 30  # of the figure without its labels in points, and of a label in characters
CHARACTER = 4.6  # points of one, about
REACH = 4.0  # an interval's end is drawn as far as this many times the largest gain


@dataclass(frozen=True)
class Row:
    """One comparison in nats/token, None where it could not be measured. A ``group`` stands together."""

    label: str
    interval: Interval | None
    group: str = ""
    saved: TokensSaved | None = None

    @property
    def strong(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and (self.interval.above_0 or self.interval.below_0)


def forest(rows: Sequence[Row], name: str, description: str, label: str = "gain (mnat/token)") -> Markup:
    """Millinats, and the tokens saved beside the value where there are any. Hollow: the interval holds 0."""
    places, groups, end = _places(rows)
    with drawing(_width(rows), 46 + LINE * end) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7)
        limit = _limit([row.interval for row in rows if row.interval is not None])
        for y, row in zip(places, rows, strict=True):
            if row.interval is None:
                axes.annotate("not measured", (0, y), (6, 0), textcoords="offset points", va="center", color=SOFT)
                continue
            scaled = Interval(*(1e3 * each for each in (row.interval.value, row.interval.low, row.interval.high)))
            _bar(axes, y, scaled, row.strong, row.interval.value > 0, 1e3 * limit)
            text = formats.mnat(row.interval.value)
            text += f"\n{_times(row.saved)}" if row.saved else ""
            axes.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center")
        axes.set_xlabel(label)
        spread(axes, "x", [1e3 * row.interval.value for row in rows if row.interval and row.strong])
        _frame(axes, rows, places, groups, end)
        return svg(figure, name, description)


def token_forest(rows: Sequence[Row], name: str, description: str) -> Markup | None:
    """Times the tokens that the reference needs for the same loss, from 1; None where no row has it."""
    rows = [row for row in rows if row.saved is not None]
    if not rows:
        return None
    places, groups, end = _places(rows)
    with drawing(_width(rows), 46 + LINE * end) as figure:
        axes = figure.add_subplot()
        axes.axvline(1, color=INK, linewidth=0.8, alpha=0.7)
        for y, row in zip(places, rows, strict=True):
            assert row.saved is not None
            found = row.saved.factor
            strong = found.low > 1 or found.high < 1
            colour = (BLUE if found.value > 1 else RED) if strong else SOFT
            axes.plot([found.low, found.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            for at, mark in ((found.low, "|"), (found.high, ">" if row.saved.beyond else "|")):
                axes.plot([at], [y], mark, color=colour, markersize=6, markeredgewidth=1.2)
            axes.plot([found.value], [y], "D", markersize=5.5, mfc=colour if strong else PAPER, mec=colour)
            axes.annotate(_times(row.saved), (1.02, y), xycoords=("axes fraction", "data"), va="center")
        axes.set_xlabel("tokens for the same loss, times ours")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, 0.98), max(right, 1.05))
        _frame(axes, rows, places, groups, end)
        return svg(figure, name, description)


def _width(rows: Sequence[Row]) -> float:
    longest = max((len(text) for row in rows for text in (row.label, row.group)), default=0)
    return WIDTH + CHARACTER * min(longest, WRAP)


def _times(saved: TokensSaved) -> str:
    return f"{'> ' if saved.beyond else ''}{formats.times(saved.factor.value)}"


def _frame(
    axes: Axes, rows: Sequence[Row], places: Sequence[float], groups: Sequence[tuple[str, float]], end: float
) -> None:
    """Labels of rows and groups."""
    axes.set_yticks(places, [textwrap.fill(row.label, WRAP, break_long_words=True) for row in rows])
    for text, y in groups:
        axes.annotate(text, (-0.02, y), xycoords=("axes fraction", "data"), ha="right", va="center", color=SOFT)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(end, -0.4)


def _places(rows: Sequence[Row]) -> tuple[list[float], list[tuple[str, float]], float]:
    """The y of every row and of every group's title, in lines of text, and where the last one ends."""
    at, places, groups, last = 0.0, list[float](), list[tuple[str, float]](), ""
    for row in rows:
        if row.group and row.group != last:
            groups.append((row.group, at + 0.5))
            at, last = at + 1.4, row.group
        tall = max(2 if row.saved else 1, len(textwrap.wrap(row.label, WRAP)))
        places.append(at + tall / 2)
        at += tall + GAP
    return places, groups, at


def _limit(intervals: Sequence[Interval]) -> float:
    """How far ends are drawn, in nats/token: a wide interval must not press the others together."""
    values = [abs(each.value) for each in intervals]
    ends = [abs(end) for each in intervals for end in (each.low, each.high)]
    return min(max(ends, default=1.0), REACH * max(values, default=1.0) or 1.0)


def _bar(axes: Axes, y: float, interval: Interval, strong: bool, good: bool, limit: float) -> None:
    colour = (BLUE if good else RED) if strong else SOFT
    low, high = max(interval.low, -limit), min(interval.high, limit)
    axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
    for end, drawn, arrow in ((interval.low, low, "<"), (interval.high, high, ">")):
        mark = "|" if end == drawn else arrow
        axes.plot([drawn], [y], mark, color=colour, markersize=6, markeredgewidth=1.2)
    value = min(max(interval.value, -limit), limit)
    axes.plot([value], [y], "o", markersize=6.5, markerfacecolor=colour if strong else PAPER, markeredgecolor=colour)
