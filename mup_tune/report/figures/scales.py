"""Scales that keep small and large differences readable side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from mup_tune.report.formats import minus

WIDE = 6.0  # times the smallest value, from which on a linear scale would hide it
STEPS = (1.0, 2.0, 5.0)


def spread(axes: Axes, along: Literal["x", "y"], values: Iterable[float]) -> float | None:
    """A linear scale, or where ``values`` lie far apart one that is linear up to about the smallest of them.

    Returns the end of its linear part, None where all of it is linear.
    """
    sizes = sorted(abs(each) for each in values if each)
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda tick, _: minus(f"{tick:,.4g}")))
    if not sizes or sizes[-1] <= WIDE * sizes[0]:
        axis.set_major_locator(MaxNLocator(5))
        return None
    linear = below(sizes[0])
    (axes.set_xscale if along == "x" else axes.set_yscale)("symlog", linthresh=linear, linscale=1.0)
    steps = STEPS if sizes[-1] <= 12 * linear else STEPS[:1]  # more would run into one another
    ticks = [t for power in range(6) for step in steps if (t := step * linear * 10.0**power) <= 1.1 * sizes[-1]]
    low, high = (axes.get_xlim if along == "x" else axes.get_ylim)()
    axis.set_ticks([*([-linear] if low < -linear else []), 0.0, *ticks])
    (axes.set_xlim if along == "x" else axes.set_ylim)(low if low < -linear else min(low, -0.1 * linear), high)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda tick, _: minus(f"{tick:,.4g}")))
    return linear


def below(value: float) -> float:
    """The highest of 1, 2, 5, 10 … that is not above ``value``."""
    decade = 10.0 ** math.floor(math.log10(value))
    return max(step * decade for step in STEPS if step * decade <= value * (1 + 1e-9))
