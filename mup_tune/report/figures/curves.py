"""Learning curves: lines over the tokens of a member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mup_tune.report.figures.style import LINES, SOFT, drawing, legend_label, svg
from mup_tune.report.formats import si

Curve = tuple[Sequence[float], Sequence[float]]  # tokens, value


def learning_curves(curves: Mapping[str, Curve], name: str, label: str, first_line: int, zero: bool) -> Markup:
    """One line per named curve over tokens of one member (log scale); four are told apart, the rest left out.

    ``first_line`` is the place of the first curve's ink, so that a name keeps its line from figure to figure;
    ``zero`` draws the line at 0 that differences are read against.
    """
    with drawing(330, 230) as figure:
        axes = figure.add_subplot()
        for (title, (tokens, values)), (colour, dash) in zip(curves.items(), LINES[first_line:], strict=False):
            axes.plot(tokens, values, color=colour, linestyle=dash, linewidth=1.5, label=legend_label(title))
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
