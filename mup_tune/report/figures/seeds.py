"""Every fresh seed of every claim: paired differences as dots, their mean with its 95 % interval."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mup_tune.findings import Comparison
from mup_tune.report.figures.scales import spread
from mup_tune.report.figures.style import BLUE, INK, PAPER, SOFT, drawing, svg

WIDTH, ROW = 520, 30  # of the figure, and of a row, in points


@dataclass(frozen=True)
class Strip:
    """One comparison seed by seed: loss(reference) − loss(candidate) in nats/token."""

    label: str
    comparison: Comparison

    @property
    def differences(self) -> dict[int, float]:
        ours, theirs = self.comparison.candidate_losses, self.comparison.reference_losses
        pairs = {seed: (ours[seed], theirs.get(seed)) for seed in sorted(ours)}
        return {seed: b - a for seed, (a, b) in pairs.items() if a is not None and b is not None}


def seed_strips(strips: Sequence[Strip], name: str) -> Markup:
    """Millinats; above 0 the tuned Settings are better on that seed."""
    labels = [textwrap.fill(strip.label, 28, break_long_words=True) for strip in strips]
    with drawing(WIDTH, 46 + ROW * len(strips)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7)
        for y, strip in enumerate(strips):
            found = [1e3 * each for each in strip.differences.values()]
            shifts = 0.11 * (np.arange(len(found)) % 3 - 1)  # equal seeds must not hide one another
            axes.plot(found, y + 0.16 + shifts, "o", color=BLUE, markersize=4, alpha=0.5, markeredgewidth=0)
            if (gain := strip.comparison.gain) is not None:
                axes.plot([1e3 * gain.low, 1e3 * gain.high], [y - 0.22] * 2, color=INK, linewidth=1.6)
                axes.plot([1e3 * gain.value], [y - 0.22], "D", markersize=5, mfc=PAPER, mec=INK)
            better = sum(each > 0 for each in found)
            told = f"{better} of {len(found)} seeds"
            axes.annotate(told, (1.02, y), xycoords=("axes fraction", "data"), va="center", color=SOFT)
        axes.set_yticks(range(len(strips)), labels)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(strips) - 0.4, -0.6)
        axes.set_xlabel("gain on one seed (mnat/token)")
        known = [each.comparison.gain for each in strips]
        spread(axes, "x", [1e3 * gain.value for gain in known if gain and (gain.above_0 or gain.below_0)])
        return svg(figure, name, f"Gains seed by seed of {len(strips)} comparisons")
