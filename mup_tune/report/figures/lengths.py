"""Bases of RoPE: loss at multiples of the training length, against the base and against the length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import log2, log10
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from mup_tune.findings import AxisFinding
from mup_tune.findings.rope_bases import LengthCurve
from mup_tune.report import formats
from mup_tune.report.figures.style import LINES, SOFT, crosses, drawing, svg
from mup_tune.report.figures.values import Mean, at_value, ended, to_base

WIDTH, HEIGHT = 330, 250  # of a figure, in points
MARKERS = "os^DvPX*"
DODGE = 0.09  # decades between the lines, so that their bars stand side by side
LINEAR = (1, 2, 5, 10, 20, 50, 100)  # mnat/token, candidates for the half-width of the linear part of the scale


def roles(axis: AxisFinding) -> dict[str, float]:
    """What some bases are: the incumbent's, the best, the one taken."""
    found = {"incumbent": axis.before}
    if axis.best is not None:
        found["best"] = axis.best.value
    return found | ({"taken": axis.after} if axis.after != axis.before else {})


def by_base(curves: Sequence[LengthCurve], axis: AxisFinding, name: str) -> Markup:
    """Paired difference to the incumbent's base against the base: a line a length, mean ± SE, seeds faint.

    The scale is linear in a grey band around 0 and logarithmic beyond where a plateau within the noise and a
    slope of hundreds of mnat have to share it.
    """
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        axes.axhline(0, color=SOFT, linewidth=0.7, zorder=0)
        axes.axvline(log10(axis.before), color=SOFT, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
        for place, (curve, (colour, dash), marker) in enumerate(
            zip(curves, cycle(LINES), cycle(MARKERS), strict=False)
        ):
            shift = DODGE * (place - (len(curves) - 1) / 2)
            _draw(axes, curve, axis.before, shift, {"color": colour, "linestyle": dash, "marker": marker})
        lost = [log10(point.value) for point in axis.points if None in point.losses.values()]
        crosses(axes, lost, 1.0, 7, 1.8, clip_on=False, transform=axes.get_xaxis_transform())
        linear = linear_part(curves, axis.before)
        _scale(axes, linear)
        decades = [log10(point.value) for point in axis.points]
        axes.set_xlim(min(decades) - 0.5, max(decades) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("log10 of the RoPE base; dotted: the incumbent's")
        axes.set_ylabel("loss − incumbent's (mnat/token)")
        figure.legend(frameon=False, loc="outside upper left", ncols=4, handlelength=2.8, columnspacing=1.4)
        factors = ", ".join(f"{curve.factor}x" for curve in curves)
        return svg(figure, name, f"Loss difference to RoPE base {formats.value(axis.before)} at {factors}, by base")


def _draw(axes: Axes, curve: LengthCurve, centre: float, shift: float, style: Mapping[str, Any]) -> None:
    rows = to_base(curve.points, centre)
    xs = [log10(point.value) + shift for point in curve.points]
    means = [Mean.of(row.values()) for row in rows]
    ys = [math.nan if mean.value is None else 1e3 * mean.value for mean in means]
    errors = [1e3 * (mean.se or 0.0) for mean in means]
    axes.errorbar(xs, ys, errors, fmt="none", ecolor=style["color"], elinewidth=1.1, capsize=2)
    axes.plot(xs, ys, markersize=4.5, linewidth=1.3, label=f"{curve.factor}x", **style)
    seeds = [
        (x, 1e3 * each) for x, row in zip(xs, map(ended, rows), strict=True) if len(row) > 1 for each in row.values()
    ]
    axes.plot(*zip(*seeds, strict=True), "o", color=style["color"], markersize=2.4, alpha=0.35, markeredgewidth=0)


def linear_part(curves: Sequence[LengthCurve], centre: float) -> float | None:
    """Half-width of the linear part in mnat/token: above most of the noise; None where all is linear."""
    means = [Mean.of(row.values()) for curve in curves for row in to_base(curve.points, centre)]
    errors = [1e3 * mean.se for mean in means if mean.se]
    largest = max((1e3 * abs(mean.value) for mean in means if mean.value is not None), default=0.0)
    enough = 3 * float(np.median(errors)) if errors else 0.0
    found = next((float(each) for each in LINEAR if each >= enough), LINEAR[-1])
    return found if largest > 10 * found else None


def _scale(axes: Axes, linear: float | None) -> None:
    if linear is None:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return
    axes.set_yscale("symlog", linthresh=linear, linscale=1.2)
    low, high = axes.get_ylim()
    beyond = [sign * linear * step * 10.0**power for sign in (-1, 1) for power in range(6) for step in (1, 4)]
    steps = [y for y in (0.0, -linear / 2, linear / 2, *sorted(beyond)) if low <= y <= high]
    axes.axhspan(-linear, linear, color=SOFT, alpha=0.1, linewidth=0, zorder=0)
    axes.set_yticks(steps)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: formats.signed(y, 0 if y == round(y) else 1)))


def by_length(curves: Sequence[LengthCurve], axis: AxisFinding, name: str) -> Markup:
    """Mean loss against the length: the smallest base, the incumbent's, the best and the one taken."""
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        named = _named({"smallest": axis.points[0].value, **roles(axis)})
        for (base, label), (colour, dash), marker in zip(named.items(), LINES, MARKERS, strict=False):
            at = [at_value(curve.points, base) for curve in curves]
            means = [Mean.of(point.losses.values()).value for point in at]
            ys = [math.nan if mean is None else mean for mean in means]
            xs = [log2(curve.seq_len) for curve in curves]
            axes.plot(xs, ys, color=colour, linestyle=dash, marker=marker, markersize=5, linewidth=1.4, label=label)
        axes.set_xticks([log2(curve.seq_len) for curve in curves], [f"{c.seq_len}\n{c.factor}x" for c in curves])
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("tokens in a row (log2 scale)")
        axes.set_ylabel("loss (nats/token)")
        figure.legend(frameon=False, loc="outside upper left", ncols=2, handlelength=2.8)
        return svg(figure, name, f"Loss against length for the bases {', '.join(named.values())}")


def _named(roles: Mapping[str, float]) -> dict[float, str]:
    """The label of each base: its value and all that it is."""
    names: dict[float, list[str]] = {}
    for role, base in roles.items():
        names.setdefault(base, []).append(role)
    return {base: f"{formats.value(base)} ({', '.join(words)})" for base, words in names.items()}
