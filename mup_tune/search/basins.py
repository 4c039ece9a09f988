"""Where the optimum of one axis lies at several sizes: drifts, regrets and a verdict, from curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from mup_tune import stats
from mup_tune.findings import Verdict
from mup_tune.findings.basins import TOLERANCE, Basin, BasinSize, NoOptimum, NoRegret
from mup_tune.search import swept_axis
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.shape import Shape
from mup_tune.stats import Interval, Parabola, Sigma


@dataclass(frozen=True)
class AtSize:
    """One size's curve and what is known of its optimum, or why there is none."""

    label: str
    shape: Shape
    curve: SweptAxis
    sigma: Sigma | None
    fit: Parabola | None
    optimum: Interval | None
    no_optimum: NoOptimum | None


def at_size(label: str, shape: Shape, curve: SweptAxis) -> AtSize:
    """What the curve of a size, trained to its end, tells of its optimum."""
    sigma = swept_axis.noise([curve])
    fit = curve.fit(sigma)
    why: NoOptimum | None = None
    if curve.best is None:
        why = "every point diverged"
    elif curve.at_edge:
        why = "edge"
    elif fit is None:
        why = "no fit"
    optimum = None if fit is None or why else fit.optimum
    return AtSize(label, shape, curve, sigma, fit, optimum, why)


def drift(here: Interval, there: Interval) -> Interval:
    """``here`` − ``there``, its 95 % CI from theirs by MOVER (Zou & Donner, Statist. Med. 27:1693, 2008).

    low = Δ − √((here − low_here)² + (high_there − there)²), high likewise: no symmetry is assumed. From 3
    seeds on the two CIs resample whole seeds at n − 1 degrees of freedom; seeds that move both optima
    together make the result conservative. In simulation at 3 seeds it covers 97 to 99 % on parabolas, 92 % at
    worst on skewed bowls. Student's t over optima fitted seed by seed covers 92 to 94 % (single-seed fits
    clamp and bend) and 89 %, and is not used.
    """
    value = here.value - there.value
    low = value - sqrt((here.value - here.low) ** 2 + (there.high - there.value) ** 2)
    high = value + sqrt((here.high - here.value) ** 2 + (there.value - there.low) ** 2)
    return Interval(value, low, high)


def judged(drifted: Interval) -> Verdict:
    """pass: the CI inside ±0.5 log2; fail: wholly outside; else inconclusive."""
    if max(abs(drifted.low), abs(drifted.high)) < TOLERANCE:
        return "pass"
    return "fail" if drifted.low > TOLERANCE or drifted.high < -TOLERANCE else "inconclusive"


def basin_of(param: str, hp: str, sizes: Sequence[AtSize]) -> Basin:
    """All sizes, each against the first."""
    found = tuple(_size(each, sizes[0]) for each in sizes)
    moved = found[-1].drift
    return Basin(param=param, hp=hp, sizes=found, verdict=judged(moved) if moved else "inconclusive")


def _size(size: AtSize, smallest: AtSize) -> BasinSize:
    moved, cost, no_regret = None, None, None
    if size is not smallest and smallest.optimum is not None:
        if size.optimum is not None:
            moved = drift(size.optimum, smallest.optimum)
        cost, no_regret = _regret(size, smallest.optimum.value, moved)
    return BasinSize(
        label=size.label,
        d_model=size.shape.d_model,
        n_layers=size.shape.n_layers,
        parameters=size.shape.parameters(),
        points=size.curve.points,
        fit=size.fit,
        optimum=size.optimum,
        drift=moved,
        regret=cost,
        best_offset=size.curve.best,
        extended=size.curve.extended,
        no_optimum=size.no_optimum,
        no_regret=no_regret,
    )


def _regret(size: AtSize, x: float, moved: Interval | None) -> tuple[Interval | None, NoRegret | None]:
    """Nats/token that the offset ``x`` costs at ``size``, and why that is not known.

    Between the fitted points it is ½·curvature·drift², over the corners of both CIs (conservative); elsewhere
    the measured losses, interpolated at ``x``, against the best trained point.
    """
    near, offsets, fit = list(size.curve.near()), size.curve.offsets, size.fit
    if fit is not None and moved is not None and near[0] <= x <= near[-1]:
        squares = sorted((moved.low**2, moved.high**2))
        least = 0.0 if moved.low <= 0 <= moved.high else squares[0]
        value = fit.curvature.value * moved.value**2 / 2
        low, high = max(0.0, fit.curvature.low) * least / 2, fit.curvature.high * squares[1] / 2
        return Interval(value, min(value, low), max(value, high)), None
    best = size.curve.best
    if best is None:
        return None, None
    if not offsets[0] <= x <= offsets[-1]:
        return None, "outside the grid"
    right = next(index for index, offset in enumerate(offsets) if offset >= x)
    left = max(0, right - 1)
    share = (x - offsets[left]) / (offsets[right] - offsets[left]) if right > left else 0.0
    low_side, high_side = (stats.usable(size.curve.losses[offsets[index]]) for index in (left, right))
    if low_side is None or high_side is None:
        return None, "diverged"
    there = {seed: (1 - share) * low_side[seed] + share * high_side[seed] for seed in low_side}
    return stats.paired_gain(size.curve.losses[best], there, size.sigma), None
