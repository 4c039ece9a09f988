"""How a RoPE-base stage reads on the page: loss at multiples of the training length, against the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import log2, log10
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from mup_tune.findings import AxisFinding, Finding, LengthCurve, Point
from mup_tune.report import formats
from mup_tune.report.figures import LINES, RED, SOFT, STYLE, svg
from mup_tune.report.html import environment

WIDTH, HEIGHT = 330, 250  # of a figure, in points
MARKERS = "os^DvPX*"
DODGE = 0.09  # decades between the lines, so that their bars stand side by side
LINEAR = (1, 2, 5, 10, 20, 50, 100)  # mnat/token, candidates for the half-width of the linear part of the scale


@dataclass(frozen=True)
class Mean:
    """Mean over seeds with its standard error, nats/token; None where a seed diverged, no SE from one seed."""

    value: float | None
    se: float | None

    @property
    def loss(self) -> str:
        if self.value is None:
            return "diverged"
        return f"{self.value:.4f}" + ("" if self.se is None else f" ± {self.se:.4f}")

    @property
    def mnat(self) -> str:
        error = "" if self.se is None else f" ± {1e3 * self.se:.1f}"
        return formats.mnat(self.value) + ("" if self.value is None else error)


@dataclass(frozen=True)
class Row:
    """One base: its losses, and their paired differences to the incumbent's base, at every length and as the mean."""

    base: float
    role: str
    taken: bool
    losses: list[Mean]
    differences: list[Mean]


def section(finding: Finding, anchor: str) -> str:
    """The figures and the table of a finding that has lengths, as HTML; empty for any other."""
    if not finding.lengths:
        return ""
    axis = finding.axes[0]
    return environment().get_template("lengths.html").render(
        factors=[curve.factor for curve in finding.lengths],
        seq_len=finding.lengths[0].seq_len // finding.lengths[0].factor,
        rows=table(finding),
        title=finding.title,
        incumbent=axis.before,
        two_scales=_linear(finding.lengths, axis.before) is not None,
        differences=Markup(differences(finding.lengths, axis, f"{anchor}-lengths")),
        absolute=Markup(absolute(finding.lengths, axis, f"{anchor}-length-losses")),
    )  # fmt: skip


def table(finding: Finding) -> list[Row]:
    axis = finding.axes[0]
    roles = _roles(axis)
    columns = [*(curve.points for curve in finding.lengths), axis.points]
    rows = []
    for place, point in enumerate(axis.points):
        cells = [points[place] for points in columns]
        paired = [_mean(_paired(points, axis.before)[place].values()) for points in columns]
        role = ", ".join(name for name, base in roles.items() if base == point.value)
        losses = [_mean(cell.losses.values()) for cell in cells]
        taken = axis.after != axis.before and point.value == axis.after
        rows.append(Row(point.value, role, taken, losses, paired))
    return rows


def _roles(axis: AxisFinding) -> dict[str, float]:
    """What some bases are: the incumbent's, the best, the one taken."""
    means = {point.value: mean for point in axis.points if (mean := _mean(point.losses.values()).value) is not None}
    roles = {"incumbent": axis.before}
    if means:
        roles["best"] = min(means, key=means.__getitem__)
    return roles | ({"taken": axis.after} if axis.after != axis.before else {})


def _mean(losses: Iterable[float | None]) -> Mean:
    values = list(losses)
    ended = [loss for loss in values if loss is not None]
    if not ended or len(ended) < len(values):
        return Mean(None, None)
    error = float(np.std(ended, ddof=1)) / math.sqrt(len(ended)) if len(ended) > 1 else None
    return Mean(float(np.mean(ended)), error)


def _paired(points: Sequence[Point], centre: float) -> list[Mapping[int, float | None]]:
    """Per point, loss − loss at the base ``centre`` by seed; None where either diverged."""
    base = next(point.losses for point in points if point.value == centre)

    def less(loss: float | None, reference: float | None) -> float | None:
        return None if loss is None or reference is None else loss - reference

    return [{seed: less(loss, base[seed]) for seed, loss in point.losses.items()} for point in points]


def differences(curves: Sequence[LengthCurve], axis: AxisFinding, name: str) -> str:
    """Paired difference to the incumbent's base against the base: a line a length, mean ± SE, seeds faint.

    The scale is linear in a grey band around 0 and logarithmic beyond where a plateau within the noise and a
    slope of hundreds of mnat have to share it.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=SOFT, linewidth=0.7, zorder=0)
        axes.axvline(log10(axis.before), color=SOFT, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
        for place, (curve, (colour, dash), marker) in enumerate(
            zip(curves, cycle(LINES), cycle(MARKERS), strict=False)
        ):
            shift = DODGE * (place - (len(curves) - 1) / 2)
            _draw(axes, curve, axis.before, shift, {"color": colour, "linestyle": dash, "marker": marker})
        lost = [log10(point.value) for point in axis.points if None in point.losses.values()]
        axes.plot(
            lost, [1.0] * len(lost), "x", color=RED, markersize=7, markeredgewidth=1.8, clip_on=False,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
        linear = _linear(curves, axis.before)
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
    rows = [{seed: d for seed, d in row.items() if d is not None} for row in _paired(curve.points, centre)]
    full = [len(row) == len(point.losses) for row, point in zip(rows, curve.points, strict=True)]
    xs = [log10(point.value) + shift for point in curve.points]
    means = [_mean(row.values()) if whole else Mean(None, None) for row, whole in zip(rows, full, strict=True)]
    ys = [math.nan if mean.value is None else 1e3 * mean.value for mean in means]
    errors = [1e3 * (mean.se or 0.0) for mean in means]
    axes.errorbar(xs, ys, errors, fmt="none", ecolor=style["color"], elinewidth=1.1, capsize=2)
    axes.plot(xs, ys, markersize=4.5, linewidth=1.3, label=f"{curve.factor}x", **style)
    seeds = [(x, 1e3 * each) for x, row in zip(xs, rows, strict=True) if len(row) > 1 for each in row.values()]
    axes.plot(*zip(*seeds, strict=True), "o", color=style["color"], markersize=2.4, alpha=0.35, markeredgewidth=0)


def _linear(curves: Sequence[LengthCurve], centre: float) -> float | None:
    """Half-width of the linear part in mnat/token: above most of the noise; None where all of the scale is linear."""
    means = [_mean(row.values()) for curve in curves for row in _paired(curve.points, centre)]
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


def absolute(curves: Sequence[LengthCurve], axis: AxisFinding, name: str) -> str:
    """Mean loss against the length of the rows: the smallest base, the incumbent's, the best and the one taken."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        roles = {"smallest": axis.points[0].value, **_roles(axis)}
        for (base, label), (colour, dash), marker in zip(_named(roles).items(), LINES, MARKERS, strict=False):
            at = [next(point for point in curve.points if point.value == base) for curve in curves]
            means = [_mean(point.losses.values()).value for point in at]
            ys = [math.nan if mean is None else mean for mean in means]
            xs = [log2(curve.seq_len) for curve in curves]
            axes.plot(xs, ys, color=colour, linestyle=dash, marker=marker, markersize=5, linewidth=1.4, label=label)
        axes.set_xticks([log2(curve.seq_len) for curve in curves], [f"{c.seq_len}\n{c.factor}x" for c in curves])
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("tokens in a row (log2 scale)")
        axes.set_ylabel("loss (nats/token)")
        figure.legend(frameon=False, loc="outside upper left", ncols=2, handlelength=2.8)
        return svg(figure, name, f"Loss against length for the bases {', '.join(_named(roles).values())}")


def _named(roles: Mapping[str, float]) -> dict[float, str]:
    """The label of each base: its value and all that it is."""
    names: dict[float, list[str]] = {}
    for role, base in roles.items():
        names.setdefault(base, []).append(role)
    return {base: f"{formats.value(base)} ({', '.join(words)})" for base, words in names.items()}
