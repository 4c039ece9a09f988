"""Values of several runs, row by row: a mark a run, told apart by shape as well as by ink."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from mup_tune.report.figures.style import BLUE, GREEN, INK, PAPER, PURPLE, RED, SOFT, drawing, legend_label, svg
from mup_tune.stats import Interval

INKS, SHAPES = (BLUE, RED, GREEN, PURPLE), "osD^v<>"
WIDTH, LINE, BETWEEN = 400, 9, 9  # of the figure, of a mark's line, between rows; in points

Row = tuple[str, Sequence[Interval | None]]


def side_by_side(rows: Sequence[Row], runs: Sequence[str], name: str, description: str, label: str) -> Markup:
    """A band a row and in it a line a run: the value and its 95 % CI; hollow where the CI includes 0."""
    labels = [textwrap.fill(row[0], 26, break_long_words=True) for row in rows]
    band = len(runs) * LINE + BETWEEN
    heights = [max(band, 12 * (text.count("\n") + 1)) for text in labels]
    with drawing(WIDTH, 60 + 12 * -(-len(runs) // 2) + sum(heights)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7)
        top, ticks = 0.0, []
        for (_, values), height in zip(rows, heights, strict=True):
            ticks.append(top + height / 2)
            first = top + (height - (len(runs) - 1) * LINE) / 2
            for index, value in enumerate(values):
                if value is not None:
                    y, ink = first + index * LINE, INKS[index % len(INKS)]
                    axes.plot([value.low, value.high], [y, y], color=ink, linewidth=1.6, solid_capstyle="butt")
                    face = ink if value.above_0 or value.below_0 else PAPER
                    shape = SHAPES[index % len(SHAPES)]
                    axes.plot([value.value], [y], shape, markersize=5, mfc=face, mec=ink, linestyle="none")
            top += height
            if len(rows) > 1:
                axes.axhline(top, color=SOFT, linewidth=0.4, alpha=0.5)
        for index, run in enumerate(runs):
            ink, shape = INKS[index % len(INKS)], SHAPES[index % len(SHAPES)]
            axes.plot([], [], shape, color=ink, markersize=5, label=legend_label(run, 40))
        axes.set_yticks(ticks, labels)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(top, 0)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        figure.legend(frameon=False, loc="outside upper left", ncols=min(2, len(runs)), handlelength=1.2)
        return svg(figure, name, description)
