"""Intervals and σ_Δ for few seeds: paired gains, slopes, and Holm's and Bonferroni's corrections.

All intervals are two-sided 95 % CIs of the seed noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, sqrt
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict
from scipy.special import stdtr, stdtrit

from mup_tune.stats.losses import Losses, common, matrix, usable

SIGNIFICANT = 0.05  # a p-value below it is called a difference
UPPER = 0.5 + (1 - SIGNIFICANT) / 2  # the upper end of a 95 % CI, as a quantile


@dataclass(frozen=True)
class Sigma:
    """σ_Δ in nats/token, the seed-to-seed SD of a paired difference of two trials, with its dof."""

    value: float
    dof: float


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % CI; ``p_value`` is two-sided against 0, where that is asked."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", allow_inf_nan=False, revalidate_instances="always"
    )

    value: float
    low: float
    high: float
    p_value: float | None = None

    @property
    def above_0(self) -> bool:
        return self.low > 0

    @property
    def below_0(self) -> bool:
        return self.high < 0

    @property
    def significant(self) -> bool:
        """p < 0.05, where a p-value is known."""
        return self.p_value is not None and self.p_value < SIGNIFICANT

    def picked_from(self, choices: int) -> Interval:
        """The same with Bonferroni's p-value for what was picked from ``choices``; the CI stays as it is."""
        return self if self.p_value is None else replace(self, p_value=min(1.0, choices * self.p_value))


NOTHING = Interval(0.0, 0.0, 0.0, 1.0)  # the gain of a point over itself


def sigma_delta(points: Sequence[Mapping[int, float]]) -> Sigma | None:
    """σ_Δ = √2 · SD of what is left after every point's and every seed's mean is taken out; None below 2 × 2.

    Of K points (the centre is one) and n seeds, (K − 1)(n − 1) degrees of freedom remain. Differences from
    the centre alone would all carry the centre's own noise, and their number would promise more than 4(n − 1)
    are worth.
    """
    seeds = common(points)
    if len(points) < 2 or len(seeds) < 2:
        return None
    rest_KS = matrix(points, seeds)
    rest_KS = rest_KS - rest_KS.mean(axis=0) - rest_KS.mean(axis=1, keepdims=True) + rest_KS.mean()
    dof = (len(points) - 1) * (len(seeds) - 1)
    return Sigma(sqrt(2 * float((rest_KS**2).sum()) / dof), dof)


def scatter_sigma(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Sigma | None:
    """σ_Δ where there is one seed only: √2 · the scatter about one parabola per curve (offsets, losses).

    What the parabola misses counts as noise, which errs on the careful side. None where no curve has 4
    points.
    """
    squares, dof = 0.0, 0
    for offsets, losses in curves:
        if len(offsets) > 3:
            rest = np.asarray(losses) - np.polyval(np.polyfit(offsets, losses, 2), offsets)
            squares, dof = squares + float((rest**2).sum()), dof + len(offsets) - 3
    return Sigma(sqrt(2 * squares / dof), dof) if dof else None


def paired_gain(candidate: Losses, reference: Losses, sigma: Sigma | None = None) -> Interval | None:
    """Mean of loss(reference) − loss(candidate) over common seeds, with a t CI: positive is better.

    With ``sigma`` the SE is σ_Δ/√n at its dof (needed for one seed), without it the differences' own SD/√n.
    None without a common seed, where either diverged, or where nothing tells the noise.
    """
    better, worse = usable(candidate), usable(reference)
    if better is None or worse is None:
        return None
    seeds = common([better, worse])
    if not seeds or (sigma is None and len(seeds) < 2):
        return None
    differences = np.array([worse[seed] - better[seed] for seed in seeds])
    if sigma is None:
        sigma = Sigma(float(differences.std(ddof=1)), len(seeds) - 1)
    return t_interval(float(differences.mean()), sigma.value / sqrt(len(seeds)), sigma.dof)


def difference(one: Interval, other: Interval) -> Interval:
    """one − other, of independent measurements, with its CI from theirs (Zou and Donner 2008).

    Each end lies as far off as the root of the summed squares of the two distances that it is made of. Where
    both CIs are symmetric, that is the root of the summed squared standard errors.
    """
    value = one.value - other.value
    below = hypot(one.value - one.low, other.high - other.value)
    above = hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - below, value + above)


def detectable(sigma: Sigma, seeds: int, tests: int = 1) -> float:
    """Gain in nats/token that about half of all draws show on ``seeds`` paired seeds: t·σ_Δ/√n at n − 1 dof.

    t is that of a 95 % CI after Bonferroni over ``tests``.
    """
    return float(stdtrit(seeds - 1, 1 - SIGNIFICANT / (2 * tests))) * sigma.value / sqrt(seeds)


def slope(x: Sequence[float], y: Sequence[float], looks: int = 1) -> Interval | None:
    """Least-squares slope of y on x with Student's t CI on n − 2 degrees of freedom; None below three points.

    Curvature counts as noise here: a line that bends has a wide CI. ``looks`` as in :func:`t_interval`.
    """
    x_n, y_n = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    spread = float(((x_n - x_n.mean()) ** 2).sum()) if len(x_n) else 0.0
    if len(x_n) < 3 or spread == 0 or not np.isfinite(y_n).all():
        return None
    value = float(((x_n - x_n.mean()) * y_n).sum()) / spread
    rest = y_n - y_n.mean() - value * (x_n - x_n.mean())
    dof = len(x_n) - 2
    return t_interval(value, sqrt(float((rest**2).sum()) / dof / spread), dof, looks)


def paired_slope(x: Sequence[float], candidates: Sequence[Losses], references: Sequence[Losses]) -> Interval | None:
    """Least-squares slope on ``x`` of the gain loss(reference) − loss(candidate), with a t CI over seeds.

    Every common seed gives a slope of its own; the CI is of their mean. None where a side diverged anywhere,
    below 2 common seeds or 2 different ``x``.
    """
    rows = [usable(each) for each in (*candidates, *references)]
    there = [row for row in rows if row is not None]
    x_n = np.asarray(x, dtype=np.float64) - np.mean(x)
    seeds = common(there) if len(there) == len(rows) else []
    if len(seeds) < 2 or not x_n.any():
        return None
    loss_NS = matrix(there, seeds)
    slopes_S = x_n @ (loss_NS[len(x) :] - loss_NS[: len(x)]) / float(x_n @ x_n)
    return t_interval(float(slopes_S.mean()), float(slopes_S.std(ddof=1)) / sqrt(len(seeds)), len(seeds) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; valid under any dependence."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def t_interval(value: float, se: float, dof: float, looks: int = 1) -> Interval:
    """Student's t CI and p-value of ``value`` with standard error ``se``.

    The CIs of ``looks`` such intervals, of growing data, cover together in 95 % of draws (Bonferroni). The
    p-value is that of this one alone.
    """
    half = float(stdtrit(dof, 1 - SIGNIFICANT / (2 * looks))) * se
    p_value = 2 * float(stdtr(dof, -abs(value) / se)) if se > 0 else float(value == 0)
    return Interval(value, value - half, value + half, p_value)
