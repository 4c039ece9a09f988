"""A swept axis as a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from mup_tune.findings import AxisFinding
from mup_tune.report.figures.style import BLUE, GREEN, INK, LINE, PAPER, RED, SOFT, drawing, svg
from mup_tune.report.figures.values import differences, ended, highest_shown, standard_error
from mup_tune.report.formats import log2, si


def paired(axis: AxisFinding) -> tuple[list[float], list[dict[int, float]], float | None]:
    """Offsets, per seed loss − centre loss (nats/token), and the centre's mean loss.

    Seeds whose centre diverged or is missing cannot be paired. Where no seed has a centre, losses are
    relative to the lowest mean, and the centre is None.
    """
    points = sorted(axis.points, key=lambda point: point.offset)
    offsets = [point.offset for point in points]
    base = ended(next((point.losses for point in points if abs(point.offset) < 1e-9), {}))
    if base:
        return offsets, [ended(row) for row in differences(points, base)], float(np.mean(list(base.values())))
    rows = [ended(point.losses) for point in points]
    lowest = min((float(np.mean(list(row.values()))) for row in rows if row), default=0.0)
    return offsets, [{seed: loss - lowest for seed, loss in row.items()} for row in rows], None


def axis_panel(axis: AxisFinding, name: str) -> Markup:
    """Loss − centre against the log2 offset: seeds, mean ± SE, fit, optimum with CI, divergence."""
    offsets, rows, centre = paired(axis)
    seen = [(x, [1e3 * loss for loss in row.values()]) for x, row in zip(offsets, rows, strict=True) if row]
    means = {x: float(np.mean(losses)) for x, losses in seen}
    top = highest_shown(list(means.values())) if seen else 0.0
    shown = [(x, losses) for x, losses in seen if means[x] <= top]
    marks = _edge_marks(axis, means, top)
    with drawing(252, 186) as figure:
        axes = figure.add_subplot()
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
    """A mark at the top edge: diverged seeds ("2/3"), a mean far above, or both; ``line`` stacks labels."""

    x: float
    text: str
    diverged: bool
    line: int


def _edge_marks(axis: AxisFinding, means: Mapping[float, float], top: float) -> list[EdgeMark]:
    """Labels of close neighbours step down, so that they do not overlap. ``means`` are in millinats."""
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
        axes.errorbar([x], [mean], [standard_error(losses) or 0.0], color=BLUE, capsize=2.5, elinewidth=1.1)
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
    found = f"; fitted optimum at {log2(axis.fit.optimum.value)} log2" if axis.fit else "; no fit"
    diverged = sum(loss is None for point in axis.points for loss in point.losses.values())
    lost = f"; {diverged} trials diverged" if diverged else ""
    return f"{axis.axis}: loss against log2 offset, {len(axis.points)} grid points{found}{lost}; {axis.decision}"
