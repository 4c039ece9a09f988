"""A response surface: predicted and measured gains by round, and where every axis stands and went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mup_tune.findings.surface import Effect, ResponseSurface
from mup_tune.report import formats
from mup_tune.report.figures.style import BLUE, GREEN, INK, PAPER, PURPLE, RED, SOFT, drawing, svg
from mup_tune.stats import Interval

WIDTH, ROW = 600, 14  # of the figures, and of one of their rows, in points
STYLES = {"predicted": (PURPLE, "D"), "measured": (BLUE, "o"), "verified": (GREEN, "s")}


@dataclass(frozen=True)
class Gain:
    """One row of the figure of rounds; ``style`` is a key of STYLES."""

    label: str
    style: str
    interval: Interval


def gains(result: ResponseSurface) -> list[Gain]:
    """Of every round what was predicted and then what was measured, and the verification last."""
    rows = []
    for done in result.rounds:
        if done.predicted is not None:
            rows.append(Gain(f"round {done.number}: predicted", "predicted", done.predicted))
        for each in done.shares:
            if each.comparison.gain is not None:
                went = ", taken" if each.share == done.taken else ""
                rows.append(Gain(f"{each.label}{went}", "measured", each.comparison.gain))
    if result.moved is not None and result.moved.gain is not None:
        rows.append(Gain("last centre, verified", "verified", result.moved.gain))
    return rows


def rounds_figure(result: ResponseSurface, name: str) -> Markup | None:
    """Gains with their 95 % intervals; filled where the interval excludes 0. None where there are none."""
    rows = gains(result)
    if not rows:
        return None
    with drawing(400, 50 + 1.2 * ROW * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7)
        for y, row in enumerate(rows):
            colour, shape = STYLES[row.style]
            _interval(axes, y, row.interval, colour, shape)
            value = formats.mnat(row.interval.value)
            axes.annotate(value, (1.02, y), xycoords=("axes fraction", "data"), va="center")
        for y, (above, below) in enumerate(pairwise(rows)):
            if below.style != "measured" and above.style != below.style:
                axes.axhline(y + 0.5, color=SOFT, linewidth=0.5, alpha=0.6)
        _rows(axes, [row.label for row in rows])
        axes.set_xlabel("gain (mnat/token)")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        told = "; ".join(f"{row.label} {formats.mnat(row.interval.value)}" for row in rows)
        return svg(figure, name, f"Gains by round in mnat/token: {told}")


@dataclass(frozen=True)
class Place:
    """An axis at the last centre, and the log2 that the centre moved by along it."""

    effect: Effect
    move: float

    @property
    def gain(self) -> float:
        """What the move gained by the surface, in nats/token: loss before it − loss after it."""
        return -self.effect.slope.value * self.move + self.effect.curvature.value * self.move**2 / 2

    @property
    def left(self) -> float:
        """What is left to gain along the axis alone, slope²/(2·curvature)."""
        return self.effect.slope.value**2 / max(2 * self.effect.curvature.value, 1e-12)


def ranked(result: ResponseSurface) -> list[Place]:
    """The axes whose move gained most first; those that did not move last, by what is left to gain."""
    places = [Place(each, result.moves.get(each.axis, 0.0)) for each in result.effects]
    return sorted(places, key=lambda place: (not place.move, -place.gain, -place.left))


def axes_figure(result: ResponseSurface, name: str) -> Markup | None:
    """An axis a row: the centre's move, the slope and the curvature there. None without a surface."""
    places = ranked(result)
    if not places:
        return None
    with drawing(WIDTH, 44 + ROW * len(places)) as figure:
        moves, slopes, curvatures = figure.subplots(1, 3, sharey=True)
        for y, place in enumerate(places):
            moves.plot([0, place.move], [y, y], color=BLUE, linewidth=2.2, solid_capstyle="butt")
            moves.plot([place.move], [y], "o", markersize=5, mfc=BLUE if place.move else PAPER, mec=BLUE)
            _interval(slopes, y, place.effect.slope, RED, "D", 4)
            _interval(curvatures, y, place.effect.curvature, GREEN, "s", 4)
        titles = ("move (log2)", "slope (mnat/token per log2)", "curvature (per (log2)²)")
        for panel, title in zip((moves, slopes, curvatures), titles, strict=True):
            panel.axvline(0, color=INK, linewidth=0.8, alpha=0.7, zorder=0)
            panel.grid(axis="both", color=SOFT, linewidth=0.4, alpha=0.3)
            panel.set_axisbelow(True)
            panel.set_xlabel(title)
            panel.xaxis.set_major_locator(MaxNLocator(5))
            _rows(panel, [place.effect.axis for place in places])
        told = ", ".join(f"{place.effect.axis} {formats.log2(place.move)}" for place in places)
        return svg(figure, name, f"Where the centre moved, in log2: {told}")


def _interval(axes: Axes, y: float, interval: Interval, colour: str, shape: str, size: float = 6) -> None:
    """In millinats; the mark is hollow where the interval holds 0."""
    strong = interval.above_0 or interval.below_0
    axes.plot([1e3 * interval.low, 1e3 * interval.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
    face = colour if strong else PAPER
    axes.plot([1e3 * interval.value], [y], shape, markersize=size, mfc=face, mec=colour)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
