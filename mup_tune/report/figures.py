"""Figures as inline SVG: pure functions from data to a string.

Inks are CSS variables of the page (``--c1`` …) and ``currentColor``, so one figure reads on light and on
dark; text stays text. Nothing is told by colour alone: seeds, means, fits and optima differ in shape as well.
"""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mup_tune.findings import AxisFinding, Interval
from mup_tune.report.formats import mnat, si

# Stand-in colours that matplotlib writes into the SVG, and what the page paints instead.
INK, SOFT, BLUE, RED, GREEN, PURPLE, PAPER = (f"#{number:02x}0b0c" for number in range(1, 8))
PAINT = {
    INK: "currentColor",
    SOFT: "var(--soft, #8a8f98)",
    BLUE: "var(--c1, #0072b2)",
    RED: "var(--c2, #d55e00)",
    GREEN: "var(--c3, #009e73)",
    PURPLE: "var(--c4, #cc79a7)",
    PAPER: "var(--paper, #ffffff)",
}
LINES = ((BLUE, "-"), (RED, "--"), (GREEN, "-."), (PURPLE, ":"))
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mup-tune",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "axes.unicode_minus": True,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "path.simplify": True,
}
LINE = 10  # points between stacked labels
OFF_SCALE = 12.0  # a mean this many times the typical distance from the best is pinned to the top edge, with its value


@dataclass(frozen=True)
class Bar:
    """One row of :func:`intervals`; ``strong`` rows have a CI that excludes 0. ``interval`` is in nats/token."""

    label: str
    interval: Interval

    @property
    def strong(self) -> bool:
        return self.interval.low > 0 or self.interval.high < 0


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an HTML-ready ``<svg>``: no prolog, no fixed size, ids made unique by ``name``."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{prefix}-', body)
    for colour, paint in PAINT.items():
        body = body.replace(colour, paint)
    label = html.escape(description, quote=True)
    return f'<svg viewBox="{box.group(1) if box else "0 0 1 1"}" role="img" aria-label="{label}">{body.strip()}'


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of ``width`` × ``height`` points."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def paired(axis: AxisFinding) -> tuple[list[float], list[dict[int, float]], float | None]:
    """Offsets, per seed loss − centre loss (nats/token), and the centre's mean loss.

    Seeds whose centre diverged or is missing cannot be paired. Where no seed has a centre, losses are
    relative to the lowest mean, and the centre is None.
    """
    points = sorted(axis.points, key=lambda point: point.offset)
    centre = next((point.losses for point in points if abs(point.offset) < 1e-9), {})
    base = {seed: loss for seed, loss in centre.items() if loss is not None}
    finite = [{seed: loss for seed, loss in point.losses.items() if loss is not None} for point in points]
    if base:
        rows = [{seed: loss - base[seed] for seed, loss in row.items() if seed in base} for row in finite]
        return [point.offset for point in points], rows, float(np.mean(list(base.values())))
    means = [float(np.mean(list(row.values()))) for row in finite if row]
    lowest = min(means, default=0.0)
    rows = [{seed: loss - lowest for seed, loss in row.items()} for row in finite]
    return [point.offset for point in points], rows, None


def _top_edge(means: Sequence[float]) -> float:
    """Highest mean that keeps the neighbourhood of the optimum readable, in millinats."""
    low = min(means)
    typical = float(np.median([mean - low for mean in means if mean > low] or [1.0]))
    return max(mean for mean in means if mean - low <= OFF_SCALE * typical)


def axis_panel(axis: AxisFinding, name: str) -> str:
    """Loss difference against log2 offset from the incumbent: seeds, mean ± SE, fit, optimum with CI, divergence."""
    offsets, rows, centre = paired(axis)
    seen = [(x, [1e3 * loss for loss in row.values()]) for x, row in zip(offsets, rows, strict=True) if row]
    means = {x: float(np.mean(losses)) for x, losses in seen}
    top = _top_edge(list(means.values())) if seen else 0.0
    shown = [(x, losses) for x, losses in seen if means[x] <= top]
    marks = _edge_marks(axis, means, top)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(252, 186)
        low, high = _limits([losses for _, losses in shown], marks)
        axes.set_ylim(low, high)
        span = max(offsets) - min(offsets) if len(offsets) > 1 else 1.0
        axes.set_xlim(min(offsets, default=0) - 0.08 * span, max(offsets, default=0) + 0.08 * span)
        axes.axhline(0, color=SOFT, linewidth=0.6, zorder=0)
        if axis.fit is not None and seen:
            _draw_fit(axes, axis, [x for x, _ in seen], seen, centre)
        for x, losses in shown:
            _draw_point(axes, x, losses)
        for mark in marks:
            colour, shape, size = (RED, "x", 7) if mark.diverged else (BLUE, "^", 6)
            axes.plot([mark.x], [high], shape, color=colour, markersize=size, markeredgewidth=1.8, clip_on=False)
            drop = (0, -14 - LINE * mark.line)
            box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}  # the parabola may pass behind a label
            text = axes.annotate(mark.text, (mark.x, high), drop, textcoords="offset points", ha="center", bbox=box)
            text.set_fontsize(8)
        axes.set_xlabel("log2 offset from the incumbent")
        axes.set_ylabel("loss − centre (mnat/token)" if centre is not None else "loss − lowest (mnat/token)")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5) if seen else NullLocator())
        return svg(figure, name, _describe(axis))


@dataclass(frozen=True)
class EdgeMark:
    """A mark at the top edge: diverged seeds ("2/3"), a mean far above the panel, or both; ``line`` stacks labels."""

    x: float
    text: str
    diverged: bool
    line: int


def _edge_marks(axis: AxisFinding, means: Mapping[float, float], top: float) -> list[EdgeMark]:
    """Labels of close neighbours step down a line each, so that they do not overlap. ``means`` are in millinats."""
    points = sorted(axis.points, key=lambda point: point.offset)
    near = 0.2 * (points[-1].offset - points[0].offset)
    marks: list[EdgeMark] = []
    for x, losses in ((point.offset, point.losses) for point in points):
        lost = sum(loss is None for loss in losses.values())
        lines = [f"{lost}/{len(losses)}"] if lost else []
        lines += [f"+{si(means[x])}"] if means.get(x, top) > top else []
        if lines:
            beside = marks and x - marks[-1].x < near
            line = (marks[-1].line + 1) % 3 if beside else 0
            marks.append(EdgeMark(x, "\n".join(lines), lost > 0, line + len(lines) - 1))
    return marks


def _limits(drawn: Sequence[list[float]], marks: Sequence[EdgeMark]) -> tuple[float, float]:
    """y range in millinats: all seeds that are drawn, with room for the labels below the top edge."""
    if not drawn:
        return 0.0, 1.0
    losses = [loss for each in drawn for loss in each] + [0.0]
    low, high = min(losses), max(losses)
    pad = max(high - low, 0.1)
    return low - 0.1 * pad, high + (0.1 + 0.16 * max((mark.line + 1 for mark in marks), default=0)) * pad


def _draw_point(axes: Axes, x: float, losses: list[float]) -> None:
    """The seeds, their mean, and one standard error on either side; the centre is a hollow square."""
    mean = float(np.mean(losses))
    if len(losses) > 1:
        axes.plot([x] * len(losses), losses, "o", color=BLUE, markersize=3, alpha=0.4, markeredgewidth=0)
        error = float(np.std(losses, ddof=1)) / math.sqrt(len(losses))
        axes.errorbar([x], [mean], [error], color=BLUE, capsize=2.5, elinewidth=1.1)
    shape, size, face = ("s", 7, "none") if abs(x) < 1e-9 else ("o", 5, BLUE)
    axes.plot([x], [mean], shape, markersize=size, markerfacecolor=face, markeredgecolor=BLUE, markeredgewidth=1.4)


def _draw_fit(
    axes: Axes, axis: AxisFinding, xs: Sequence[float], seen: Sequence[tuple[float, list[float]]], centre: float | None
) -> None:
    """The parabola over the points it was fitted to, and the optimum as a line in its CI band.

    An optimum that is exactly a grid point was clamped to it: the fitted vertex lies beyond and is not known
    here, so no parabola is drawn.
    """
    assert axis.fit is not None
    fit = axis.fit
    if min(abs(fit.optimum.value - point.offset) for point in axis.points) > 1e-9:
        first, last = min(xs), max(xs)
        if fit.robust:  # it was fitted to the neighbourhood of the minimum and says nothing beyond
            first = max((x for x in xs if x < fit.optimum.value), default=first)
            last = min((x for x in xs if x > fit.optimum.value), default=last)
        grid = np.linspace(first, last, 97)
        bowl = 0.5 * fit.curvature.value * (grid - fit.optimum.value) ** 2
        # Without a centre there is no absolute reference: the bowl's floor is put where the drawn losses end.
        floor = fit.floor - centre if centre is not None else min(float(np.mean(each)) for _, each in seen) / 1e3
        axes.plot(grid, 1e3 * (floor + bowl), color=INK, linewidth=1.1, alpha=0.75)
    left, right = axes.get_xlim()
    if fit.optimum.low < right and fit.optimum.high > left:
        axes.axvspan(max(fit.optimum.low, left), min(fit.optimum.high, right), color=GREEN, alpha=0.16, linewidth=0)
    if left < fit.optimum.value < right:
        axes.axvline(fit.optimum.value, color=GREEN, linewidth=1.3, linestyle=(0, (3, 2)))


def _describe(axis: AxisFinding) -> str:
    found = f"; fitted optimum at {axis.fit.optimum.value:+.2f} log2" if axis.fit else "; no fit"
    diverged = sum(loss is None for point in axis.points for loss in point.losses.values())
    lost = f"; {diverged} trials diverged" if diverged else ""
    return f"{axis.axis}: loss against log2 offset, {len(axis.points)} grid points{found}{lost}; {axis.decision}"


def intervals(bars: Sequence[Bar], name: str, description: str, label: str = "gain (mnat/token)") -> str:
    """Dot and 95 % interval per row, in millinats; a filled dot where the interval excludes 0, else a hollow one."""
    names = [textwrap.fill(bar.label, 24, break_long_words=True) for bar in bars]
    lines = sum(1 + text.count("\n") for text in names)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(330, 44 + 6 * len(bars) + 12 * lines)
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7)
        for y, bar in enumerate(bars):
            low, mid, high = (1e3 * each for each in (bar.interval.low, bar.interval.value, bar.interval.high))
            colour = BLUE if bar.strong and mid > 0 else RED if bar.strong else SOFT
            axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([low, low, high, high], [y - 0.14, y + 0.14, np.nan, np.nan], color=colour, linewidth=1.2)
            axes.plot([high, high], [y - 0.14, y + 0.14], color=colour, linewidth=1.2)
            face = colour if bar.strong else PAPER
            axes.plot([mid], [y], "o", markersize=6.5, markerfacecolor=face, markeredgecolor=colour, linestyle="none")
            axes.annotate(mnat(bar.interval.value), (1.02, y), xycoords=("axes fraction", "data"), va="center")
        axes.set_yticks(range(len(bars)), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return svg(figure, name, description)


Curve = tuple[Sequence[float], Sequence[float]]  # tokens, value


def learning_curves(curves: Mapping[str, Curve], name: str, label: str, first_line: int, zero: bool) -> str:
    """One line per named curve over tokens of one member (log scale); four are told apart, the rest left out.

    ``first_line`` is the place of the first curve's ink, so that a name keeps its line from figure to figure;
    ``zero`` draws the line at 0 that differences are read against.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(330, 230)
        for (title, (tokens, values)), (colour, dash) in zip(curves.items(), LINES[first_line:], strict=False):
            axes.plot(tokens, values, color=colour, linestyle=dash, linewidth=1.5, label=textwrap.shorten(title, 34))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: si(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if zero:
            axes.axhline(0, color=SOFT, linewidth=0.7, zorder=0)
        axes.set_xlabel("tokens per member (log scale)")
        axes.set_ylabel(label)
        figure.legend(frameon=False, loc="outside upper left", ncols=2, handlelength=2.6)
        return svg(figure, name, f"{label} over tokens: {', '.join(curves)}")
