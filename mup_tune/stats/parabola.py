"""Log-parabolas near the minimum of a swept axis, with a test of their fit.

Where a parabola is seen to miss the landscape, :mod:`mup_tune.stats.local` answers in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict
from scipy.special import stdtrit

from mup_tune.stats.local import Bounds, local_fit
from mup_tune.stats.losses import Array, Losses, argmin, common, matrix, means, usable
from mup_tune.stats.noise import UPPER, Interval, Sigma, sigma_delta
from mup_tune.stats.quadratic import (
    MISFIT_LEVEL,
    TAILS,
    cliff,
    explained,
    misfit,
    reach,
    resampled_means,
    solver,
    weights,
)


@dataclass(frozen=True)
class Parabola:
    """loss ≈ floor + ½·curvature·(offset − optimum)² around the best point; offsets in log2.

    ``optimum.value`` never leaves the points it was fitted to, its CI may. ``edge``: the best point is the
    first or last one trained, so the true optimum may lie beyond. ``lack_of_fit``: p-value of
    :func:`lack_of_fit`. ``robust``: it was below 0.1 and the numbers are those of local fits; ``curvature``
    is then that of the bowl's bottom, the mean over about one step of the grid on either side.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    optimum: Interval
    floor: float
    curvature: Interval
    points_used: int
    edge: bool
    lack_of_fit: float | None = None
    robust: bool = False


def near_minimum(values: Sequence[float | None]) -> list[int]:
    """Indices of the points around the lowest one that a parabola may be fitted to, in order.

    From the lowest point outwards up to, and without, the first one that diverged or is a cliff
    (:func:`mup_tune.stats.quadratic.cliff`).
    """
    best = argmin(values)
    if best is None:
        return []
    limit = cliff(values, best)

    def inside(index: int) -> bool:
        value = values[index] if 0 <= index < len(values) else None
        return value is not None and value <= limit

    first = last = best
    while inside(first - 1):
        first -= 1
    while inside(last + 1):
        last += 1
    return list(range(first, last + 1))


def lack_of_fit(x: Sequence[float], points: Sequence[Mapping[int, float]], sigma: Sigma | None = None) -> float | None:
    """p-value of the F test (:func:`mup_tune.stats.quadratic.misfit`) that a parabola misses the points."""
    found = misfit(np.vander(np.asarray(x, dtype=np.float64), 3), points, sigma)
    return None if found is None else found[1]


def fit_parabola(offsets: Sequence[float], losses: Sequence[Losses], sigma: Sigma | None = None) -> Parabola | None:
    """Weighted least-squares parabola through the seed means near the minimum (see :func:`near_minimum`).

    Weights are 1/(SE² + (0.3 · excess over the minimum)²): all points count alike where noise rules, the
    close ones most where the landscape's own asymmetry does. The optimum's CI comes from 2000 resamples over
    whole seeds (≥ 3 seeds; normal multipliers on the seeds' deviations, widened by t/z at n − 1 dof, so that
    3 seeds are covered too), else from the delta method with σ_Δ, else from the scatter about the fit, else
    it is the fitted points' span. Where :func:`lack_of_fit` is below 0.1, optimum and curvature are those of
    local fits (:mod:`mup_tune.stats.local`). An optimum at the last point before a cliff may lie anywhere up
    to the cliff's point, and its CI says so.

    Args:
        offsets: log2 offsets, ascending. losses: per offset, over the same seeds. sigma: σ_Δ of the stage.

    Returns:
        None where the best point is the better answer: fewer than 3 points, no positive curvature, an optimum
        outside the points though the best one is inside them, or less than half of the (weighted) variance
        explained.
    """
    values = means(losses)
    block = near_minimum(values)
    if len(block) < 3:
        return None
    x_K = np.array([offsets[index] for index in block])
    rows = [usable(losses[index]) or {} for index in block]
    loss_KS = matrix(rows, common(rows))
    y_K, seeds = loss_KS.mean(axis=1), loss_KS.shape[1]
    best = int(y_K.argmin())
    sigma = sigma or sigma_delta(rows)
    p_value = lack_of_fit(list(x_K), rows, sigma)
    weight_K = weights(y_K, None if sigma is None else sigma.value / sqrt(2 * seeds))
    design_K3 = np.stack([np.ones_like(x_K), x_K - x_K[best], (x_K - x_K[best]) ** 2 / 2], axis=1)
    solve_3K = solver(design_K3, weight_K)
    level, slope, curvature = (float(each) for each in solve_3K @ y_K)
    rest_K = y_K - design_K3 @ (level, slope, curvature)
    if curvature <= 0 or not explained(y_K, rest_K, weight_K):
        return None
    step, first, last = -slope / curvature, float(x_K[0] - x_K[best]), float(x_K[-1] - x_K[best])
    if (step < first and best > 0) or (step > last and best < len(block) - 1):
        return None
    edge, beyond = block[best] in (0, len(offsets) - 1), _beyond(offsets, block)
    if p_value is not None and p_value < MISFIT_LEVEL and sigma is not None:
        optimum, floor, bend = local_fit(x_K, y_K, weight_K, sigma, seeds, beyond)
        return Parabola(optimum, floor, bend, len(block), edge, p_value, robust=True)
    if sigma is None and len(block) > 3:
        sigma = Sigma(sqrt(2 * float((rest_K**2).sum()) / (len(block) - 3)), len(block) - 3)
    if seeds >= 3:
        step_ci, curvature_ci = _resampled(loss_KS, solve_3K, first, last)
    elif sigma is not None:
        step_ci, curvature_ci = _delta(slope, curvature, solve_3K, sigma, seeds, first, last)
    else:
        step_ci, curvature_ci = (first, last), (curvature, curvature)
    step, origin = min(max(step, first), last), float(x_K[best])
    at = min(max(origin + step, float(x_K[0])), float(x_K[-1]))
    low, high = origin + step_ci[0], origin + step_ci[1]
    if block[0] > 0 and at == x_K[0]:
        low = min(low, beyond[0])
    if block[-1] < len(offsets) - 1 and at == x_K[-1]:
        high = max(high, beyond[1])
    return Parabola(
        optimum=Interval(at, min(at, low), max(at, high)),
        floor=level + slope * step + curvature * step**2 / 2,
        curvature=Interval(curvature, min(curvature, curvature_ci[0]), max(curvature, curvature_ci[1])),
        points_used=len(block),
        edge=edge,
        lack_of_fit=p_value,
    )


def _beyond(offsets: Sequence[float], block: Sequence[int]) -> Bounds:
    """What a minimum at the block's ends stands for: the cliff's point, or at the grid's end a CI's reach."""
    low, high = reach(offsets[block[0]], offsets[block[-1]])
    return (
        offsets[block[0] - 1] if block[0] > 0 else low,
        offsets[block[-1] + 1] if block[-1] < len(offsets) - 1 else high,
    )


def _resampled(loss_KS: Array, solve_3K: Array, first: float, last: float) -> tuple[Bounds, Bounds]:
    """CIs of optimum and curvature from resampling whole seeds; deterministic."""
    slope_N, curvature_N = (solve_3K @ resampled_means(loss_KS))[1:]
    low, high = reach(first, last)
    convex_N = curvature_N > 0
    step_N = np.where(convex_N, -slope_N / np.where(convex_N, curvature_N, 1.0), np.where(slope_N > 0, low, high))
    step_low, step_high = np.quantile(np.clip(step_N, low, high), TAILS)
    curvature_low, curvature_high = np.quantile(curvature_N, TAILS)
    return (float(step_low), float(step_high)), (float(curvature_low), float(curvature_high))


def _delta(
    slope: float, curvature: float, solve_3K: Array, sigma: Sigma, seeds: int, first: float, last: float
) -> tuple[Bounds, Bounds]:
    """CIs by the delta method; anywhere in reach where the curvature may be 0 (Fieller's condition)."""
    covariance = solve_3K @ solve_3K.T * sigma.value**2 / (2 * seeds)
    t = float(stdtrit(sigma.dof, UPPER))
    half = t * sqrt(covariance[2, 2])
    low, high = reach(first, last)
    bounds = (curvature - half, curvature + half)
    if bounds[0] <= 0:
        return (low, high), bounds
    gradient = np.array([0.0, -1 / curvature, slope / curvature**2])
    width, step = t * sqrt(float(gradient @ covariance @ gradient)), -slope / curvature
    return (min(max(step - width, low), high), min(max(step + width, low), high)), bounds
