"""Figures of the coordinate check: the RMS of every site and of its change against size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mup_tune.checks.coordinate import Judgement, Trace

COLUMNS = 5
INK = {"pass": "#0072B2", "fail": "#D55E00", "inconclusive": "#B8860B", "reported": "#666666"}


def coordinate_figure(traces: Sequence[Trace], rows: Sequence[Judgement], of: Literal["value", "change"]) -> Figure:
    """A panel a site: the mean over seeds, a line a step, each seed faint, the predicted slope dashed."""
    judged = {row.site: row for row in rows if row.of == of}
    n_rows = ceil(len(judged) / COLUMNS)
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(2.6 * COLUMNS, 2.1 * n_rows + 0.5), layout="constrained")
        axes = figure.subplots(n_rows, COLUMNS, sharex=True, squeeze=False).ravel()
        for axis, (site, row) in zip(axes, judged.items(), strict=False):
            _panel(axis, traces, site, row, of)
        for axis in axes[len(judged) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(judged) - COLUMNS) : len(judged)]:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("d_model" if traces[0].direction == "width" else "layers")
        figure.suptitle(f"RMS of each site{'' if of == 'value' else ' change since step 0'}; dashed: predicted slope")
    return figure


def _panel(axis: mpl.axes.Axes, traces: Sequence[Trace], site: str, row: Judgement, of: str) -> None:
    sizes = np.asarray([trace.size for trace in traces], dtype=float)
    shown = [index for index, step in enumerate(traces[0].steps) if step > 0 or of == "value"]
    tables = [np.asarray((trace.values if of == "value" else trace.changes)[site]) for trace in traces]
    for order, index in enumerate(shown):
        shade = 0.35 + 0.65 * (order + 1) / len(shown)
        means = [np.exp2(np.log2(table[index]).mean()) for table in tables]
        axis.plot(sizes, means, marker="o", markersize=2.5, linewidth=1, color=INK[row.verdict], alpha=shade)
    for size, table in zip(sizes, tables, strict=True):
        axis.plot([size] * table.shape[1], table[shown[-1]], ".", markersize=2, color="#999999", zorder=0)
    if row.predicted is not None:
        middle = np.exp2(np.mean([np.log2(table[shown[-1]]).mean() for table in tables]))
        line = middle * (sizes / np.exp2(np.log2(sizes).mean())) ** row.predicted
        axis.plot(sizes, line, "--", linewidth=0.8, color="#333333")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(sizes, [f"{int(size)}" for size in sizes])
    axis.minorticks_off()
    excess = f"{row.excess.value:+.2f}" if row.excess else "–"
    axis.set_title(f"{site}: {row.verdict}\nslope − predicted {excess}", fontsize=8, loc="left")
