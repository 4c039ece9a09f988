"""Channel ratios on their simplex: a cell a ratio of SSM : attention : MLP in eighths, its loss and speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import RegularPolygon

from mup_tune.findings.shapes import ShapePoint
from mup_tune.report.figures.shapes import orders
from mup_tune.report.figures.style import BLUE, INK, RED, SOFT, drawing, svg
from mup_tune.report.formats import si, signed
from mup_tune.stats import mean

CELL = 52  # points from one cell to the next
PARTS = 8  # channels are shared out in eighths
Ratio = tuple[int, int, int]  # SSM, attention, MLP


def ratio(point: ShapePoint) -> Ratio:
    ssm, attention, mlp = map(int, point.channels.split(":"))
    return ssm, attention, mlp


def is_plane(points: Sequence[ShapePoint]) -> bool:
    """Whether the ratios vary along both SSM and attention, and are enough to read a map of them."""
    found = {ratio(point) for point in points if point.channels}
    return len(found) > 3 and all(len(set(side)) > 1 for side in list(zip(*found, strict=True))[:2])


def spot(at: Ratio) -> tuple[float, float]:
    """More SSM lies higher, more attention further left, more MLP further right."""
    ssm, _, mlp = at
    return mlp + ssm / 2, ssm * math.sqrt(3) / 2


def simplex(points: Sequence[ShapePoint], name: str) -> Markup:
    """A map a block order: darker for a lower loss, framed where no other Shape is better and faster."""
    cells = [point for point in points if point.channels]
    losses = sorted(loss for point in cells if (loss := mean(point.losses)) is not None)
    floor = losses[0] if losses else 0.0
    scale = 2 * (losses[len(losses) // 2] - floor) if losses else 1.0
    spots = [spot(ratio(point)) for point in cells]
    left, right = min(x for x, _ in spots) - 0.8, max(x for x, _ in spots) + 0.8
    low, high = min(y for _, y in spots) - 1.0, max(y for _, y in spots) + 0.9
    there = orders(cells)
    with drawing(CELL * (right - left) * len(there) + 8, CELL * (high - low) + 22) as figure:
        for axes, order in zip(figure.subplots(1, len(there), squeeze=False)[0], there, strict=True):
            axes.set(xlim=(left, right), ylim=(low, high), aspect="equal")
            axes.axis("off")
            axes.set_title(order, fontsize=9.5, loc="left")
            drawn = [point for point in cells if point.shape.block_order == order]
            _empty(axes, {ratio(point) for point in drawn}, (left, right, low, high))
            for point in drawn:
                loss = mean(point.losses)
                _cell(axes, point, None if loss is None else loss - floor, scale)
            for text, x, y, side in (
                ("more SSM ↑", (left + right) / 2, high - 0.1, "center"),
                ("← more attention", left, low + 0.15, "left"),
                ("more MLP →", right, low + 0.15, "right"),
            ):
                axes.annotate(text, (x, y), ha=side, va="center", color=SOFT, fontsize=8.5)
        described = f"Loss above the lowest one for {len(cells)} ratios in {', '.join(there)}, in mnat/token"
        return svg(figure, name, described)


def _empty(axes: Axes, taken: set[Ratio], box: tuple[float, float, float, float]) -> None:
    """Faint outlines of the ratios between those that were trained."""
    left, right, low, high = box
    for ssm in range(1, PARTS - 1):
        for attention in range(1, PARTS - ssm):
            at = (ssm, attention, PARTS - ssm - attention)
            x, y = spot(at)
            if at not in taken and left + 0.5 < x < right - 0.5 and low + 0.6 < y < high - 0.5:
                axes.add_patch(_hexagon((x, y), fill=False, edgecolor=SOFT, linewidth=0.4, alpha=0.5))


def _hexagon(at: tuple[float, float], **style: Any) -> RegularPolygon:
    return RegularPolygon(at, 6, radius=0.555, **style)


def _cell(axes: Axes, point: ShapePoint, excess: float | None, scale: float) -> None:
    """Loss above the lowest, the ratio, and the speed."""
    at = spot(ratio(point))
    shade = 0.0 if excess is None else 0.55 * max(0.0, 1 - excess / scale) if scale else 0.55
    axes.add_patch(_hexagon(at, facecolor=BLUE, edgecolor="none", alpha=shade, linewidth=0))
    edge = {"edgecolor": INK, "linewidth": 1.8} if point.on_front else {"edgecolor": SOFT, "linewidth": 0.7}
    axes.add_patch(_hexagon(at, fill=False, **edge))
    text = "✕" if excess is None else "lowest" if excess == 0 else signed(1e3 * excess, 1)
    text = f"+{si(1e3 * excess)}" if excess is not None and excess >= 0.1 else text
    colour = RED if excess is None else INK
    axes.annotate(text, at, (0, 5), textcoords="offset points", ha="center", va="center", fontsize=8.5, color=colour)
    for line, shift in ((point.channels, -5), (f"{si(point.tokens_per_s)}/s", -14)):
        axes.annotate(line, at, (0, shift), textcoords="offset points", ha="center", va="center", fontsize=7.5)
