"""Learning curves: lines over the tokens of a member, and behind them the crowd of all members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mup_tune.report.figures.scales import spread
from mup_tune.report.figures.style import INK, LINES, RED, SOFT, drawing, legend_label, svg
from mup_tune.report.figures.values import padded
from mup_tune.report.formats import si

Curve = tuple[Sequence[float], Sequence[float]]  # tokens, value


def learning_curves(
    curves: Mapping[str, Curve],
    name: str,
    label: str,
    first_line: int,
    zero: bool,
    crowd: Sequence[Curve] = (),
    lost: Sequence[Curve] = (),
) -> Markup:
    """One line per named curve over tokens of one member (log scale); four are told apart, the rest left out.

    ``first_line`` is the place of the first curve's ink, so that a name keeps its line from figure to figure;
    ``zero`` draws the line at 0 that differences are read against. The ``crowd`` is faint, and what was
    ``lost`` ends in a cross where it diverged.
    """
    with drawing(360, 250) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for tokens, values in crowd:
            axes.plot(tokens, values, color=SOFT, linewidth=0.5, alpha=0.22, zorder=1)
        for tokens, values in lost:
            axes.plot(tokens, values, color=RED, linewidth=0.7, alpha=0.6, zorder=2)
        for (title, (tokens, values)), (colour, dash) in zip(curves.items(), LINES[first_line:], strict=False):
            width = 2.4 if title == "incumbent" else 1.7
            shown = legend_label(title, 52)
            axes.plot(tokens, values, color=colour, linestyle=dash, linewidth=width, label=shown, zorder=3)
        if zero:
            later = [_later(curve) for curve in curves.values()]
            _limits(axes, later)
            spread(axes, "y", [float(np.median(each[1:])) for each in later if len(each) > 1])
        else:
            _limits(axes, [values for _, values in (*curves.values(), *crowd)])
            low, high = axes.get_ylim()
            for tokens, values in lost:
                last = min(max(values[-1], low), high)
                axes.plot(
                    tokens[-1:], [last], "x", color=RED, markersize=6, markeredgewidth=1.6, clip_on=False, zorder=4
                )
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: si(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if zero:
            axes.axhline(0, color=INK, linewidth=0.7, alpha=0.7, zorder=0)
        axes.set_xlabel("tokens per member (log scale)")
        axes.set_ylabel(label)
        longest = max((len(title) for title in curves), default=0)
        if curves:
            columns = 1 if longest > 20 else 2
            figure.legend(frameon=False, loc="outside upper left", ncols=columns, handlelength=2.6)
        return svg(figure, name, f"{label} over tokens: {', '.join(curves)}")


def _later(curve: Curve) -> Sequence[float]:
    """Values over the last four fifths of the tokens, with 0: the first steps must not set the scale."""
    tokens, values = curve
    first = 0.2 * max(tokens, default=0.0)
    return [0.0, *(value for token, value in zip(tokens, values, strict=True) if token >= first)]


def _limits(axes: Axes, drawn: Sequence[Sequence[float]]) -> None:
    """All that ended; what blew up before it diverged must not set the scale."""
    values = [value for each in drawn for value in each]
    if values:
        axes.set_ylim(*padded(min(values), max(values), above=0.04))
