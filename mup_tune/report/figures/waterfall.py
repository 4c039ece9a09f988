"""Where a gain came from: a bar a stage, each from the last one's end, and the whole as confirmed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mup_tune.report import formats
from mup_tune.report.figures.style import BLUE, GREEN, INK, SOFT, drawing, svg
from mup_tune.stats import Interval

WIDTH, ROW = 350, 26  # of the figure, and of a bar with its row, in points
HEIGHT = 0.56  # of a bar, in rows


@dataclass(frozen=True)
class Step:
    """A stage's gain over its own start in nats/token. ``whole``: measured from end to end, drawn from 0."""

    label: str
    gain: Interval
    fresh: bool
    whole: bool = False


def waterfall(steps: Sequence[Step], name: str) -> Markup:
    """Bars with 95 % intervals at their ends; pale where the seeds that chose the move also measured it."""
    labels = [textwrap.fill(step.label, 24, break_long_words=True) for step in steps]
    extra = sum(label.count("\n") for label in labels)
    with drawing(WIDTH, 44 + ROW * len(steps) + 8 * extra) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7)
        at = 0.0
        for y, step in enumerate(steps):
            start = 0.0 if step.whole else at
            low, end, high = (1e3 * (start + each) for each in (step.gain.low, step.gain.value, step.gain.high))
            colour = GREEN if step.whole else BLUE
            alpha = 0.85 if step.fresh else 0.4
            axes.barh([y], [end - 1e3 * start], HEIGHT, 1e3 * start, color=colour, alpha=alpha, linewidth=0)
            axes.plot([low, high], [y, y], color=INK, linewidth=1.3, solid_capstyle="butt", zorder=3)
            axes.plot([low, high], [y, y], "|", color=INK, markersize=6, markeredgewidth=1.2, zorder=3)
            if not step.whole:
                at += step.gain.value
                if y + 1 < len(steps) and not steps[y + 1].whole:
                    line = [y + HEIGHT / 2, y + 1 - HEIGHT / 2]
                    axes.plot([1e3 * at] * 2, line, color=SOFT, linewidth=0.8)
            axes.annotate(formats.mnat(step.gain.value), (1.02, y), xycoords=("axes fraction", "data"), va="center")
        axes.set_yticks(range(len(steps)), labels)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(steps) - 0.4, -0.6)
        axes.set_xlabel("gain over the start (mnat/token)")
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.minus(f"{x:,.4g}")))
        told = "; ".join(f"{step.label} {formats.mnat(step.gain.value)}" for step in steps)
        return svg(figure, name, f"Gain by stage in mnat/token: {told}")
