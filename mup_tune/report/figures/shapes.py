"""Shapes at equal parameters: loss against throughput with its front."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from mup_tune.findings.shapes import ShapePoint
from mup_tune.report.figures.style import BLUE, GREEN, INK, PAPER, RED, SOFT, crosses, drawing, svg
from mup_tune.report.figures.values import highest_shown, padded
from mup_tune.report.formats import si
from mup_tune.stats import mean

ORDERS = {"SA_M": (BLUE, "o"), "SAM": (RED, "s"), "S_A_M": (GREEN, "^")}
WIDTH, HEIGHT = 400, 280  # of the figure of losses, in points
UPWARD = Path([(0, -1), (0, 1), (-0.4, 0.4), (0, 1), (0.4, 0.4)], [1, 2, 1, 2, 2])  # an arrow, as a marker
# Where a label may stand beside its point, best place first: offsets in points and alignments.
PLACES = ((8, 0, "left", "center"), (-8, 0, "right", "center"), (0, 8, "center", "bottom"), (0, -8, "center", "top"))


def by_loss(points: Sequence[ShapePoint]) -> list[ShapePoint]:
    """Lowest mean loss first, diverged Shapes last."""
    return sorted(points, key=lambda point: math.inf if (loss := mean(point.losses)) is None else loss)


def orders(points: Sequence[ShapePoint]) -> list[str]:
    """The block orders that occur."""
    there = {point.shape.block_order for point in points}
    return [order for order in ORDERS if order in there]


def tradeoff(points: Sequence[ShapePoint], name: str) -> Markup:
    """Loss against tokens/s: bars are the CIs of the difference to the proxy, the line is the front."""
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        low, high = _limits(points)
        axes.set_ylim(low, high)
        speeds = [point.tokens_per_s for point in points]
        pad = 0.08 * (max(speeds) - min(speeds)) or 0.1 * max(speeds)
        axes.set_xlim(min(speeds) - pad, max(speeds) + pad)
        _draw_front(axes, points)
        spots = [(point, _draw(axes, point, points[0], high)) for point in by_loss(points)]
        axes.set_xlabel("tokens/s of a pack while training")
        axes.set_ylabel("loss (nats/token)")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: si(x)))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if len(there := orders(points)) > 1:
            for order in there:
                colour, marker = ORDERS[order]
                axes.plot([], [], marker, color=colour, markersize=5.5, label=order)
            figure.legend(frameon=False, loc="outside upper left", ncols=3, handletextpad=0.2)
        _label(figure, axes, spots)
        return svg(figure, name, _describe(points))


def _limits(points: Sequence[ShapePoint]) -> tuple[float, float]:
    """y range that keeps the differences readable: a Shape far above the others is marked at the top edge."""
    means = [(point, loss) for point in points if (loss := mean(point.losses)) is not None]
    if not means:
        return 0.0, 1.0
    top = highest_shown([loss for _, loss in means])
    shown = [(point, loss) for point, loss in means if loss <= top]
    ends = [end for point, loss in shown for end in (*_bar(point, points[0]), loss)]
    return padded(min(ends), max(ends), above=0.12 + 0.1 * (len(shown) < len(points)))


def _bar(point: ShapePoint, proxy: ShapePoint) -> list[float]:
    """The ends of the CI of the paired difference, laid at the proxy's loss; none at the proxy."""
    reference = mean(proxy.losses)
    if point.gain is None or reference is None:
        return []
    return [reference - point.gain.high, reference - point.gain.low]


def _draw(axes: Axes, point: ShapePoint, proxy: ShapePoint, high: float) -> tuple[float, float]:
    """One Shape, and where it is: filled on the front, ringed the proxy, at the top what is off the scale."""
    colour, marker = ORDERS[point.shape.block_order]
    x, y = point.tokens_per_s, mean(point.losses)
    if y is None:
        crosses(axes, [x], high, 7, 1.6, clip_on=False)
        return x, high
    if y > high:
        axes.plot([x], [high], color=colour, marker=UPWARD, markersize=7, mfc="none", clip_on=False)
        return x, high
    if bar := _bar(point, proxy):
        axes.plot([x, x], bar, color=colour, linewidth=1.1, alpha=0.6)
    face = colour if point.on_front else PAPER
    axes.plot([x], [y], marker, markersize=6, mfc=face, mec=colour, markeredgewidth=1.4, zorder=4)
    if point is proxy:
        axes.plot([x], [y], "o", markersize=11.5, mfc="none", mec=INK, markeredgewidth=0.9, zorder=3)
    return x, y


def _draw_front(axes: Axes, points: Sequence[ShapePoint]) -> None:
    """The lowest loss that is to be had at a speed or above it."""
    best = sorted((point.tokens_per_s, mean(point.losses) or 0.0) for point in points if point.on_front)
    if best:
        xs, ys = zip((axes.get_xlim()[0], best[0][1]), *best, (best[-1][0], axes.get_ylim()[1]), strict=True)
        axes.step(xs, ys, where="pre", color=SOFT, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)


def _label(figure: Figure, axes: Axes, spots: Sequence[tuple[ShapePoint, tuple[float, float]]]) -> None:
    """A label beside each point, lowest losses first; one that would cover a thing is left to the table."""
    figure.draw_without_rendering()  # the layout decides where the points are
    backed = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.4}  # the front may pass behind a label
    centres = [axes.transData.transform(at) for _, at in spots]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    for index, (point, at) in enumerate(spots):
        others = [box for place, box in enumerate(taken) if place != index]
        for dx, dy, ha, va in PLACES:
            text = axes.annotate(
                short(point), at, (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=8, bbox=backed
            )
            box = text.get_window_extent()
            inside = box.x0 >= axes.bbox.x0 and box.x1 <= axes.bbox.x1 + 10 and box.y0 >= axes.bbox.y0
            if inside and not any(box.overlaps(other) for other in others):
                taken.append(box)
                break
            text.remove()


def short(point: ShapePoint) -> str:
    """The label without the block order."""
    return point.label.removesuffix(f" ({point.shape.block_order})")


def _describe(points: Sequence[ShapePoint]) -> str:
    front = ", ".join(point.label for point in by_loss(points) if point.on_front)
    return f"Loss against tokens/s of {len(points)} Shapes at equal parameters; on the front: {front or 'none'}"
